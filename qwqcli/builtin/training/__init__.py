"""How the built-in model is made: data, tokenizer, network, training, export, evaluation.

Needs the training extra (`pip install 'qwq[train]'`); nothing outside this package imports it.
"""
