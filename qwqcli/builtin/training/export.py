"""Write a checkpoint as the GGUF that qwq ships: `python -m qwqcli.builtin.training.export`.

Matrices become Q8_0; norms and biases stay F32. The head is tied, so there is no output tensor.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType, LlamaFileType, TokenType

from qwqcli.builtin import model_path

from .model import Shape
from .tokenizer import SPECIALS, Tokenizer, byte_alphabet

TEMPLATE_FILE = Path(__file__).with_name("template.jinja")
_BLOCK_NAMES = {
    "attn_norm": "attn_norm", "ffn_norm": "ffn_norm", "q": "attn_q", "k": "attn_k", "v": "attn_v",
    "o": "attn_output", "gate": "ffn_gate", "up": "ffn_up", "down": "ffn_down",
}  # fmt: skip


def gguf_name(name: str) -> str:
    """Return the GGUF name of a parameter of `TinyQwen`."""
    parts = name.split(".")
    if parts[0] == "blocks":
        return f"blk.{parts[1]}.{_BLOCK_NAMES[parts[2]]}.{parts[3]}"
    return {"embed": "token_embd", "norm": "output_norm"}[parts[0]] + "." + parts[1]


def add_header(writer: gguf.GGUFWriter, shape: Shape) -> None:
    """Write what the file is and the sizes of the network."""
    writer.add_name("qwq-tiny")
    writer.add_description("Small built-in reasoning model of qwq, trained from scratch.")
    writer.add_license("apache-2.0")
    writer.add_languages(["en", "zh"])
    writer.add_size_label("5M")
    writer.add_context_length(shape.context)
    writer.add_embedding_length(shape.width)
    writer.add_block_count(shape.layers)
    writer.add_feed_forward_length(shape.ffn)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_layer_norm_rms_eps(shape.eps)
    writer.add_rope_freq_base(shape.rope_theta)
    writer.add_file_type(LlamaFileType.MOSTLY_Q8_0)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)


def add_tokenizer(writer: gguf.GGUFWriter, tok: Tokenizer) -> None:
    """Write vocabulary, merges, special tokens and the chat template."""
    alphabet = byte_alphabet()

    def printable(piece: bytes) -> str:
        return "".join(alphabet[b] for b in piece)

    control = {s: not s.endswith(("think>", "tool_call>", "tool_response>")) for s in SPECIALS}
    kinds = [TokenType.CONTROL if control[s] else TokenType.USER_DEFINED for s in SPECIALS]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list([printable(piece) for piece in tok.pieces] + list(SPECIALS))
    writer.add_token_types([TokenType.NORMAL] * len(tok.pieces) + kinds)
    writer.add_token_merges([f"{printable(a)} {printable(b)}" for a, b in tok.merges])
    writer.add_eos_token_id(tok.specials["<|im_end|>"])
    writer.add_bos_token_id(tok.specials["<|endoftext|>"])
    writer.add_pad_token_id(tok.specials["<|endoftext|>"])
    writer.add_add_bos_token(False)
    writer.add_chat_template(TEMPLATE_FILE.read_text(encoding="utf-8"))


def add_weights(writer: gguf.GGUFWriter, weights: dict[str, torch.Tensor]) -> None:
    """Write every tensor: matrices as Q8_0, the rest as F32."""
    for name, tensor in weights.items():
        values = tensor.float().numpy()
        if values.ndim == 1:
            writer.add_tensor(gguf_name(name), values)
        else:
            packed = gguf.quants.quantize(values.astype(np.float32), GGMLQuantizationType.Q8_0)
            writer.add_tensor(gguf_name(name), packed, raw_dtype=GGMLQuantizationType.Q8_0)


def export(checkpoint: Path, target: Path) -> None:
    """Write the mean weights of a checkpoint to `target`."""
    state = torch.load(checkpoint, weights_only=False, map_location="cpu")
    writer = gguf.GGUFWriter(target, "qwen2")
    add_header(writer, Shape())
    add_tokenizer(writer, Tokenizer.load())
    add_weights(writer, state["mean"])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def main() -> None:
    """Parse the command line and export."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", type=Path, help="checkpoint.pt of a training run")
    parser.add_argument("--target", type=Path, default=model_path())
    args = parser.parse_args()
    export(args.checkpoint, args.target)
    print(f"{args.target}: {args.target.stat().st_size} bytes")


if __name__ == "__main__":
    main()
