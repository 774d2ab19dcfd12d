"""`qwq pull`, `list`, `show`, `rm` and `import`: the model files of this machine."""

from __future__ import annotations

import contextlib
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from qwqcli import catalog, config
from qwqcli.commands import Env, app, complete, confirm
from qwqcli.errors import INTERRUPTED, NoRoom, UsageError
from qwqcli.interrupt import only_once
from qwqcli.terminal import Output, Screen, visible

if TYPE_CHECKING:
    from qwqcli.hub import Hub, Offer, Pulled
    from qwqcli.plan import Option
    from qwqcli.progress import PullView

Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]
Json = Annotated[bool, typer.Option("--json", help="One JSON object.")]


@app.command()
def pull(
    ctx: typer.Context,
    what: Annotated[
        str | None,
        typer.Argument(
            metavar="[WHAT]",
            help="q4_k_m, OWNER/REPO:QUANT, OWNER/REPO:FILE or a hub's URL;"
            " what suits this machine if absent.",
            autocompletion=complete.quant_names,
        ),
    ] = None,
    source: Annotated[
        str | None, typer.Option(help="hf, modelscope, or the URL of a mirror.")
    ] = None,
    revision: Annotated[str, typer.Option(help="A branch, tag or commit.")] = "",
    to: Annotated[
        Path | None, typer.Option(help="A folder, instead of the Hugging Face cache.")
    ] = None,
    no_reuse: Annotated[
        bool, typer.Option("--no-reuse", help="Download even what another tool has here.")
    ] = False,
    offline: Annotated[bool, typer.Option("--offline", help="Never touch the network.")] = False,
    yes: Yes = False,
    json: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Say nothing but the path.")] = False,
) -> None:
    """Download a model, or the rest of one; without WHAT, the QwQ-32B that suits this machine.

    The path of the model goes to stdout. Stopped or cut off, the same command goes on.
    """
    from qwqcli import progress
    from qwqcli.engine import tuned
    from qwqcli.hub import Hub

    env: Env = ctx.obj
    screen = Screen(env.stdout, env.stderr, env.environ)
    if what is None and not yes and not env.stdin.isatty():
        raise UsageError(
            "Without a name, qwq pull asks before it downloads, and nobody is there to ask.",
            "qwq pull --yes, or name one: qwq pull q4_k_m",
        )
    hub = Hub(env.environ, source=source or "", offline=offline)
    view = progress.view_of(screen, as_json=json, quiet=quiet)
    flags = {"--source": source, "--revision": revision, "--to": to}
    again = [word for flag, value in flags.items() if value for word in (flag, str(value))]
    try:
        with only_once(), contextlib.closing(view):
            here = hub.offline and not (to or source or revision)
            end = _here(hub, what) if here else None
            if end is None:
                view.wait("Asking the hub what there is")
                if what is not None:
                    offer = hub.choose(what, revision)
                else:
                    chosen, offers = _suited(hub, revision, view, screen)
                    offer = offers[chosen if yes else _agreed(chosen, offers, env, screen)]
                what = what or offer.name
                end = progress.follow(hub.pull(offer, to=to, reuse=not no_reuse), view)
            else:
                view.show(end)
    except KeyboardInterrupt:
        command = shlex.join(["qwq", "pull", *([what] if what else []), *again])
        screen.err.write(f"Stopped; what has come is kept. Go on: {visible(command)}\n")
        raise typer.Exit(INTERRUPTED) from None
    if not json:
        screen.out.write(f"{end.paths[0]}\n")
    if not (json or quiet) and (line := tuned.offer(config.paths(env.environ).cache)):
        screen.err.write(f"{line}\n")


@app.command(name="list")
def list_models(ctx: typer.Context, json: Json = False) -> None:
    """Show the models of this machine, those of other tools too, and unfinished pulls."""
    from qwqcli import inventory
    from qwqcli.hub import Hub
    from qwqcli.progress import write_json

    env: Env = ctx.obj
    screen = Screen(env.stdout, env.stderr, env.environ)
    hub = Hub(env.environ)
    rows, left = inventory.survey(hub.models()), hub.unfinished()
    if json:
        write_json(inventory.list_object(rows, left), screen.out)
    elif rows or left:
        inventory.show_list(rows, left, hub.home, screen.out)
    else:
        screen.err.write("There is no model here but the built-in, tiny. Get QwQ-32B: qwq pull\n")


@app.command()
def show(
    ctx: typer.Context,
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="A name of `qwq list`, or a path.",
            autocompletion=complete.model_names,
        ),
    ],
    template: Annotated[
        bool, typer.Option("--template", help="Print the chat template, as it is in the file.")
    ] = False,
    json: Json = False,
) -> None:
    """Show what a model is, where it came from, and how it would run here."""
    from qwqcli import inventory
    from qwqcli.gguf import read_file_header
    from qwqcli.progress import write_json

    env: Env = ctx.obj
    screen = Screen(env.stdout, env.stderr, env.environ)
    ref = catalog.resolve(model, env.environ)
    if template:
        text = read_file_header(ref.path).chat_template or ""
        screen.out.write(visible(text) if screen.out.terminal else text)
    elif json:
        write_json(inventory.card_object(inventory.describe(ref)), screen.out)
    else:
        inventory.show_card(inventory.describe(ref), screen.out)


@app.command()
def rm(
    ctx: typer.Context,
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A name of `qwq list`.")],
    yes: Yes = False,
) -> None:
    """Remove a model that qwq brought, or what an interrupted pull has left."""
    from qwqcli.hub import Hub
    from qwqcli.progress import size

    env: Env = ctx.obj
    screen = Screen(env.stdout, env.stderr, env.environ)
    hub = Hub(env.environ)
    if not model.strip():
        raise UsageError("There is no model without a name to remove.", "qwq list")
    left = hub.unfinished(model)
    labelled = any(item.label.lower() == model.lower() for item in left)  # as the list calls it
    found = None if labelled else hub.find(model)
    if found is not None:
        if found.ours and not yes:
            confirm(env, f"Remove {found.name}, {size(found.size)}?", f"qwq rm {model} -y")
        gone = hub.remove(found)
        screen.out.write(f"Removed {visible(found.name)}: {size(gone.freed)} freed.\n")
        for path in gone.stays:
            screen.out.write(f"{visible(str(path))} stays: it is not ours alone.\n")
    elif left:
        bytes_here = sum(item.done for item in left)
        question = f"Remove the unfinished pull of {model}, {size(bytes_here)}?"
        if not yes:
            confirm(env, question, f"qwq rm {model} -y")
        freed = sum(hub.discard(item) for item in left)
        screen.out.write(f"Removed the unfinished pull of {visible(model)}: {size(freed)} freed.\n")
    else:
        raise UsageError(f"There is no model called '{model}' to remove.", "qwq list")


@app.command(name="import")
def import_model(
    ctx: typer.Context,
    path: Annotated[Path, typer.Argument(metavar="PATH", help="A GGUF file.")],
) -> None:
    """Give a model file a name that other commands know; the file stays where it is."""
    from qwqcli.hub import Hub

    env: Env = ctx.obj
    model = Hub(env.environ).adopt(path, catalog.WORDS)
    name = visible(model.name)
    out = Output(env.stdout, env.environ)
    out.write(f"It is called {name} now. Try: qwq chat --model {shlex.quote(name)}\n")


def _here(hub: Hub, what: str | None) -> Pulled | None:
    """The model that is meant, if it is on this machine."""
    from qwqcli.hub import Pulled

    model = hub.find(what) if what else hub.latest()
    return Pulled(model.name, model.paths, "kept", model.size, 0) if model else None


def _suited(
    hub: Hub, revision: str, view: PullView, screen: Screen
) -> tuple[str, dict[str, Offer]]:
    """The quantization of QwQ-32B to recommend for this machine, and all that can be had."""
    from qwqcli import plan, planning, tables
    from qwqcli.layout import Want

    offers = {offer.quantization.lower(): offer for offer in reversed(hub.offers("", revision))}
    sizes = {name: offer.size for name, offer in offers.items()}
    machine, answer = planning.answer(planning.Asked(None, Want()), sizes=sizes)
    assert isinstance(answer, list)
    found: list[Option] = [option for option in answer if option.quant.name in offers]
    chosen = plan.recommended(found)
    view.close()
    tables.show_options(found, chosen, machine, screen.err)
    if chosen is None:
        raise NoRoom("No quantization of QwQ-32B that is offered fits here.", "qwq doctor")
    return chosen, offers


def _agreed(chosen: str, offers: dict[str, Offer], env: Env, screen: Screen) -> str:
    """The quantization to download: the recommended one, or another of the table."""
    from qwqcli.progress import size

    offer = offers[chosen]
    question = (
        f"Download {offer.quantization} from {offer.repo}, {size(offer.size)}?"
        " [Y/n, or another of the table] "
    )
    while True:
        screen.err.write(visible(question))
        answer = env.stdin.readline()
        word = answer.strip().lower()
        if word in ("", "y", "yes") and answer:
            return chosen
        if word in offers:
            return word
        if word in ("", "n", "no"):
            screen.err.write("Nothing was downloaded.\n")
            raise typer.Exit(1)
