"""`riverrun`: init, run, ask, chat, serve, keys, report, doctor, hub, models, tokenizer, train, study.

Only typer is imported before a sub-command is known.

Exit codes: 0 done, 1 failed, 2 input that cannot be used, 3 a gate missed its bar, 130 interrupted.
RIVERRUN_DEBUG=1 shows tracebacks, RIVERRUN_LANG=zh speaks Chinese where the project has the words.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from riverrun.cli.errors import errors
from riverrun.cli.serving import add_serving

__all__ = ["app", "main"]

app = typer.Typer(
    name="riverrun",
    help="A language model the whole way: data, fine-tuning, evaluation, deployment, agents.",
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    no_args_is_help=True,
    add_completion=False,
)
hub_app = typer.Typer(
    help="Models and data sets: what there is, where it comes from, whether it is whole.", no_args_is_help=True
)
app.add_typer(hub_app, name="hub")
models_app = typer.Typer(help="Look into a model, convert it, fold an adapter in.", no_args_is_help=True)
app.add_typer(models_app, name="models")
tokenizer_app = typer.Typer(help="Vocabularies of one's own.", no_args_is_help=True)
app.add_typer(tokenizer_app, name="tokenizer")
train_app = typer.Typer(help="Pre-training and fine-tuning by a recipe.", no_args_is_help=True)
app.add_typer(train_app, name="train")
study_app = typer.Typer(help="Studies: many trainings, measured alike, on one page.", no_args_is_help=True)
app.add_typer(study_app, name="study")


@app.command()
def init(
    name: Annotated[Path, typer.Argument(help="Folder to write app.yaml into; its last part names the application.")],
    database: Annotated[
        str, typer.Option(help="SQLite file, or postgresql:// or mysql:// URL, that answers the questions.")
    ],
    documents: Annotated[
        Path | None, typer.Option(help="Folder of .html, .txt and .md pages; none means no page search.")
    ] = None,
    language: Annotated[
        str, typer.Option(help="Language of the questions: en, zh, or auto for that of the pages and values.")
    ] = "auto",
    candidate: Annotated[
        list[str] | None, typer.Option(help="Model of the catalogue or path; may be given several times.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Write app.yaml anew where there is one.")] = False,
) -> None:
    """Draft an application for a database and pages that nobody prepared: one app.yaml, to be run as it is."""
    with errors():
        from riverrun.cli.init import init_command

        init_command(name, database, documents, language, candidate or [], force)


@app.command()
def run(
    recipe: Annotated[Path, typer.Argument(help="Folder with app.yaml, or the file itself.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="Changes to the spec: key.sub=value ...")] = None,
    out: Annotated[Path | None, typer.Option(help="Run folder; runs/NAME unless given.")] = None,
    start: Annotated[str, typer.Option("--from", help="Run this stage and the later ones again.")] = "",
    until: Annotated[str, typer.Option(help="Stop after this stage.")] = "",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show the plan, predicted memory and time; do nothing.")
    ] = False,
    progress: Annotated[str, typer.Option(help="auto, bar, lines, json or quiet.")] = "auto",
) -> None:
    """Carry a recipe from an open model to a running application; finished stages are skipped."""
    with errors():
        from riverrun.cli.run import run_command

        run_command(recipe, overrides or [], out=out, start=start, until=until, dry_run=dry_run, progress=progress)


@app.command()
def chat(
    target: Annotated[str, typer.Argument(help="Run folder, model path or catalogue name.")] = "",
    url: Annotated[str, typer.Option(help="Talk to a server instead, such as http://127.0.0.1:8000/v1.")] = "",
    model: Annotated[str, typer.Option(help="Model id; the agent of a run, or the server's first, unless given.")] = "",
    api_key: Annotated[str, typer.Option(help="Key for --url.")] = "",
    system: Annotated[str, typer.Option(help="System text for a plain model.")] = "",
    max_tokens: Annotated[int, typer.Option(help="Longest answer in tokens.")] = 256,
    temperature: Annotated[float, typer.Option(help="0 takes the most likely token.")] = 0.0,
    database: Annotated[
        str, typer.Option(help="Talk over this SQLite file or server (URL) instead of the run's copy.")
    ] = "",
) -> None:
    """Talk to a finished run, to a model or to a server; one question a line, /quit ends."""
    with errors():
        from riverrun.cli.chat import chat_command

        chat_command(target, url, model, api_key, system, max_tokens, temperature, database)


@app.command()
def ask(
    target: Annotated[Path, typer.Argument(metavar="RUN", help="Run folder.")],
    questions: Annotated[Path, typer.Option(help='JSON lines, each {"question": ...} with an optional "id".')],
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON object a line: answer, SQL and rows, or page.")
    ] = False,
    database: Annotated[
        str, typer.Option(help="Answer from this SQLite file or server (URL) instead of the run's copy.")
    ] = "",
) -> None:
    """Answer a file of questions through the run's server and agent, one line each, in the order of the file."""
    with errors():
        from riverrun.cli.ask import ask_command

        ask_command(target, questions, as_json, database)


add_serving(app)


@app.command()
def report(
    target: Annotated[Path, typer.Argument(help="Run folder.")],
    show: Annotated[bool, typer.Option("--open", help="Open it in a browser.")] = False,
) -> None:
    """Print where a run's report is."""
    with errors():
        from riverrun.base.errors import InputError

        path = (target / "report" / "index.html").resolve()
        if not path.is_file():
            raise InputError(f"{path} does not exist: finish the run first (riverrun run RECIPE --out {target})")
        print(path)
        if show:
            import webbrowser

            webbrowser.open(path.as_uri())


@app.command()
def doctor() -> None:
    """Say what this machine has, what is missing and what to do about it."""
    with errors():
        from riverrun.cli.doctor import doctor_command

        doctor_command()


_HUB = typer.Option(help="Folder or address of a hub to look in instead of the catalogue ($RIVERRUN_HUB adds one).")
_TARGET = typer.Argument(help="Name in the catalogue or hub, a source such as hf:OWNER/NAME, or a card's file.")


@hub_app.command("list")
def hub_list(hub: Annotated[str, _HUB] = "") -> None:
    """The catalogue: name, kind, licence, languages, size, whether it is on this machine."""
    with errors():
        from riverrun.cli.hub import list_command

        list_command(hub)


@hub_app.command("search")
def hub_search(
    words: Annotated[list[str] | None, typer.Argument(help="Words, all of which must fit; Chinese ones too.")] = None,
    kind: Annotated[str, typer.Option(help="model, dataset or benchmark.")] = "",
    language: Annotated[str, typer.Option(help="A language: zh, Chinese or 中文.")] = "",
    licence: Annotated[str, typer.Option(help="A licence or how it begins: apache-2.0, cc-by.")] = "",
    hub: Annotated[str, _HUB] = "",
) -> None:
    """Find models, data sets and benchmarks by words over names, descriptions, languages and licences."""
    with errors():
        from riverrun.cli.hub import search_command

        search_command(words or [], kind, language, licence, hub)


@hub_app.command("info")
def hub_info(name: Annotated[str, _TARGET], hub: Annotated[str, _HUB] = "") -> None:
    """One card in full, with its licence, citation and path."""
    with errors():
        from riverrun.cli.hub import info_command

        info_command(name, hub)


@hub_app.command("get")
def hub_get(
    name: Annotated[str, _TARGET],
    only: Annotated[list[str] | None, typer.Option(help="Only files that fit, such as '*.json'; repeatable.")] = None,
    to: Annotated[Path | None, typer.Option(help="Also copy into this folder.")] = None,
    unpack: Annotated[
        bool, typer.Option("--unpack", help="Unpack archives, confined to a folder of their own.")
    ] = False,
    again: Annotated[bool, typer.Option("--again", help="Ask the source anew and replace what is stored.")] = False,
    hub: Annotated[str, _HUB] = "",
) -> None:
    """Fetch it into the store and print its path; what is there already is not fetched again."""
    with errors():
        from riverrun.cli.hub import get_command

        get_command(name, only or [], to, unpack, again, hub)


@hub_app.command("verify")
def hub_verify(name: Annotated[str, _TARGET], hub: Annotated[str, _HUB] = "") -> None:
    """Compare the stored files with the digests of their card or manifest; needs no network."""
    with errors():
        from riverrun.cli.hub import verify_command

        verify_command(name, hub)


@hub_app.command("diff")
def hub_diff(
    old: Annotated[str, typer.Argument(help="Card, NAME@VERSION, source or folder.")],
    new: Annotated[
        str,
        typer.Argument(help="The other side; a folder alone: its card.yaml, or the hub's card of its name."),
    ] = "",
    hub: Annotated[str, _HUB] = "",
) -> None:
    """What was added, removed and changed, by digest."""
    with errors():
        from riverrun.cli.hub import diff_command

        diff_command(old, new, hub)


@hub_app.command("publish")
def hub_publish(
    folder: Annotated[Path, typer.Argument(help="Folder with card.yaml (name, kind, licence, languages) and files.")],
    target: Annotated[
        str, typer.Argument(help="A hub's folder or address, hf:OWNER/NAME or modelscope:OWNER/NAME; $RIVERRUN_HUB.")
    ] = "",
    token: Annotated[
        str, typer.Option(help="Unless given: RIVERRUN_HUB_TOKEN, HF_TOKEN or MODELSCOPE_API_TOKEN.")
    ] = "",
) -> None:
    """Publish a folder: files first, the card last."""
    with errors():
        from riverrun.cli.hub import publish_command

        publish_command(folder, target, token)


@hub_app.command("serve")
def hub_serve(
    folder: Annotated[Path, typer.Argument(help="A hub's folder.")],
    host: Annotated[str, typer.Option(help="Address.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port; 0 picks a free one.")] = 8090,
    token: Annotated[
        list[str] | None, typer.Option(help="Who has it may publish (RIVERRUN_HUB_TOKEN too); none: read only.")
    ] = None,
) -> None:
    """Serve a hub over HTTP: everybody reads, publishers need a token."""
    with errors():
        from riverrun.cli.hub import serve_command

        serve_command(folder, host, port, token or [])


@models_app.command("list")
def models_list() -> None:
    """Published sizes: name, family, parameters, context."""
    with errors():
        from riverrun.cli.checkpoints import list_command

        list_command()


@models_app.command("info")
def models_info(
    target: Annotated[str, typer.Argument(help="Model's path, catalogue name, or a name of `models list`.")],
) -> None:
    """The shape of a model, from its header alone."""
    with errors():
        from riverrun.cli.checkpoints import info_command

        info_command(target)


@models_app.command("convert")
def models_convert(
    source: Annotated[str, typer.Argument(help="Model's path or catalogue name.")],
    target: Annotated[Path, typer.Argument(help="New folder, or the .gguf file to write.")],
    to: Annotated[str, typer.Option(help="hf, gguf, awq, gptq, gptq_v2 or group4.")] = "hf",
    kind: Annotated[str, typer.Option(help="gguf: F32, F16, BF16, Q8_0 (unless given) or Q4_0.")] = "",
    family: Annotated[str, typer.Option(help="hf: write it as this family, such as llama.")] = "",
    dtype: Annotated[str, typer.Option(help="hf: float32, bfloat16 or float16; as it is unless given.")] = "",
    group_size: Annotated[int, typer.Option(help="4-bit forms: values that share a scale; 128 unless given.")] = 0,
    shard_gb: Annotated[float, typer.Option(help="hf: size of a file at most; as it is, or 5, unless given.")] = 0.0,
) -> None:
    """Write a checkpoint in another format, family, dtype or sharding, tensor by tensor."""
    with errors():
        from riverrun.cli.checkpoints import convert_command

        convert_command(source, target, to, kind, family, dtype, group_size, shard_gb)


@models_app.command("merge")
def models_merge(
    model: Annotated[str, typer.Argument(help="Model that the adapter was trained on; may be quantised.")],
    adapter: Annotated[Path, typer.Argument(help="Adapter's folder in PEFT's layout.")],
    target: Annotated[Path, typer.Argument(help="New folder.")],
    mode: Annotated[
        str, typer.Option(help="into_dequant (as it was trained), into_base, requantize.")
    ] = "into_dequant",
    base: Annotated[str, typer.Option(help="into_base: the model before it was quantised.")] = "",
    probes: Annotated[Path | None, typer.Option(help="Text file, a probe a line, to judge the change on.")] = None,
) -> None:
    """Fold an adapter into the weights, and say by how much a logit changed."""
    with errors():
        from riverrun.cli.checkpoints import merge_command

        merge_command(model, adapter, target, mode, base, probes)


@models_app.command("explain")
def models_explain(
    target: Annotated[str, typer.Argument(metavar="MODEL", help="Model path or catalogue name.")],
    messages: Annotated[Path, typer.Option(help="JSON list of OpenAI messages, or a conversation of a .jsonl file.")],
    tools: Annotated[Path | None, typer.Option(help="JSON list of tools in the OpenAI form.")] = None,
    template: Annotated[str, typer.Option(help="Built-in chat template to use in place of the model's own.")] = "",
) -> None:
    """Show a conversation token by token, and whether transformers makes the same ids of it."""
    with errors():
        from riverrun.cli.models import explain_command

        explain_command(target, messages, tools, template)


@tokenizer_app.command("train")
def tokenizer_train(
    paths: Annotated[list[Path], typer.Argument(help=".txt, .md or .jsonl files, or folders of them.")],
    vocab_size: Annotated[int, typer.Option(help="Tokens of the vocabulary.")],
    out: Annotated[Path, typer.Option(help="Folder for tokenizer.json and compression.json.")],
    special: Annotated[
        list[str] | None, typer.Option(help="Special token; may be given several times, the last ends an answer.")
    ] = None,
    digits: Annotated[str, typer.Option(help="single: every digit alone; three: digits by three.")] = "single",
    sample: Annotated[int, typer.Option(help="Documents to train on, drawn evenly; 0 takes all.")] = 0,
    against: Annotated[str, typer.Option(help="Model whose tokenizer to compare with.")] = "",
) -> None:
    """Train a byte-level BPE vocabulary on texts and say how many bytes a token holds, by language."""
    with errors():
        from riverrun.cli.models import train_command

        train_command(paths, vocab_size, out, special or [], digits, sample, against)


@train_app.command("run")
def train_run(
    recipe: Annotated[Path, typer.Argument(help="recipe.yaml, or the folder that holds it.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="Changes to the recipe: key.sub=value ...")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the run; runs/NAME unless given.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be trained; read no weights.")] = False,
    progress: Annotated[str, typer.Option(help="auto, bar, lines, json or quiet.")] = "auto",
) -> None:
    """Train by a recipe; the same command goes on where a run was stopped."""
    with errors():
        from riverrun.cli.train import run_command

        run_command(recipe, overrides or [], out=out, dry_run=dry_run, progress=progress)


_MODEL = typer.Option(help="Model path or catalogue name whose tokenizer and chat template are used.")
_FORMAT = typer.Option(help="Format of the rows; told from the first ones unless given.")
_TRAIN_ON = typer.Option(help="What counts in the loss: assistant, last or all.")
_LONGEST = typer.Option(help="Tokens of the longest row; 1024 unless given.")
_OVERLONG = typer.Option(help="Longer conversations: drop, cut_right, cut_left_turns or refuse.")


@train_app.command("inspect")
def train_inspect(
    target: Annotated[
        str, typer.Argument(help="Recipe, file or folder of rows, source such as hf:OWNER/NAME, shards.")
    ],
    model: Annotated[str, _MODEL] = "",
    format: Annotated[str, _FORMAT] = "",
    train_on: Annotated[str, _TRAIN_ON] = "",
    max_tokens: Annotated[int, _LONGEST] = 0,
    overlong: Annotated[str, _OVERLONG] = "",
    micro_tokens: Annotated[int, typer.Option(help="Tokens of a pack; the recipe's, else 2048.")] = 0,
    global_tokens: Annotated[int, typer.Option(help="Tokens of a step; the recipe's, else one pack.")] = 0,
    rows: Annotated[int, typer.Option(help="Rows to show token by token.")] = 3,
    most: Annotated[int, typer.Option(help="Records of each file to look at; 0 takes all.")] = 2000,
    bad_rows: Annotated[Path | None, typer.Option(help="Write what was set aside into this file.")] = None,
) -> None:
    """Show what training would see: tokens, what counts in the loss, packs, lengths, rows set aside. Needs no torch."""
    with errors():
        from riverrun.cli.train_data import inspect_command

        options = {"format": format, "train_on": train_on, "max_tokens": max_tokens, "overlong": overlong}
        inspect_command(
            target,
            model=model,
            options=options,
            micro_tokens=micro_tokens,
            global_tokens=global_tokens,
            rows=rows,
            most=most,
            bad_file=bad_rows,
        )


@train_app.command("build")
def train_build(
    targets: Annotated[list[str], typer.Argument(help="Recipes, files or folders of rows, or sources.")],
    out: Annotated[Path, typer.Option(help="Folder for the shards.")],
    model: Annotated[str, _MODEL] = "",
    format: Annotated[str, _FORMAT] = "",
    train_on: Annotated[str, _TRAIN_ON] = "",
    max_tokens: Annotated[int, _LONGEST] = 0,
    overlong: Annotated[str, _OVERLONG] = "",
    workers: Annotated[int, typer.Option(help="Processes; 0 takes the cores where there is enough to do.")] = 0,
    bad_rows: Annotated[
        float | None,
        typer.Option(help="Rows that may be set aside, a share below 1, else a count; the recipe's, else 0.01."),
    ] = None,
    progress: Annotated[str, typer.Option(help="auto, bar, lines, json or quiet.")] = "auto",
) -> None:
    """Turn rows into shards of tokens, mapped when training opens them; a stopped build goes on."""
    with errors():
        from riverrun.cli.train_data import build_command

        options = {"format": format, "train_on": train_on, "max_tokens": max_tokens, "overlong": overlong}
        build_command(targets, out, model=model, options=options, workers=workers, bad_rows=bad_rows, progress=progress)


@train_app.command("report")
def train_report(
    target: Annotated[Path, typer.Argument(metavar="OUT", help="Folder of a run.")],
    show: Annotated[bool, typer.Option("--open", help="Open it in a browser.")] = False,
) -> None:
    """Write the page of a run, finished or not, and print where it is."""
    with errors():
        from riverrun.cli.train import report_command

        report_command(target, show=show)


@train_app.command("list")
def train_list(
    targets: Annotated[list[Path], typer.Argument(metavar="OUT...", help="Folders of runs, or folders of such.")],
) -> None:
    """Runs side by side: settings that differ, loss, speed, memory."""
    with errors():
        from riverrun.cli.train import list_command

        list_command(targets)


@study_app.command("run")
def study_run(
    recipe: Annotated[Path, typer.Argument(help="recipe.yaml of a study, or the folder that holds it.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="Changes to the recipe: key.sub=value ...")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the study; runs/NAME unless given.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List the cells and their time; do nothing.")] = False,
    progress: Annotated[str, typer.Option(help="auto, bar, lines, json or quiet.")] = "auto",
) -> None:
    """Carry a study out, cell by cell; the same command goes on where it was stopped."""
    with errors():
        from riverrun.cli.study import run_command

        run_command(recipe, overrides or [], out=out, dry_run=dry_run, progress=progress)


def main() -> None:
    """Entry point of the console script."""
    app()


if __name__ == "__main__":
    main()
