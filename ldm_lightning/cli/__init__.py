"""The command line: ``ldm <verb> key=value ...``, every verb a Hydra application."""

from __future__ import annotations

import sys

from ldm_lightning import __version__
from ldm_lightning.errors import nearest

__all__ = ["VERBS", "main"]

VERBS = {
    "train": "train a stage; the same command again resumes",
    "finish": "take the model of a run's best or last checkpoint, without training on",
    "sample": "draw pictures from a trained model",
    "reconstruct": "show pictures through a first stage and back",
    "import": "take over a pretrained autoencoder of diffusers as a first stage",
    "export": "write a first stage in the format of diffusers",
    "encode": "write the latents of all pictures, to train a second stage on",
    "evaluate": "measure a trained model, with the protocol beside each figure",
    "doctor": "explain what looks wrong in a run, and what to change",
    "benchmark": "measure what a part of the library costs on this machine",
}

_USAGE = "\n".join(
    [
        "usage: ldm <verb> key=value ...",
        "",
        *(f"  {verb:12} {text}" for verb, text in VERBS.items()),
        "",
        "ldm <verb> --help          what can be set",
        "ldm <verb> ... --cfg job   the configuration that would be used, without running it",
    ]
)


def main() -> None:
    """Run one verb; exit code 2 for a mistake of the user's."""
    verb = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if verb in ("-h", "--help"):
        print(_USAGE)
        raise SystemExit(0 if len(sys.argv) > 1 else 2)
    if verb == "--version":
        print(__version__)
        raise SystemExit(0)
    if verb not in VERBS:
        print(f"ldm: there is no verb '{verb}'{nearest(verb, VERBS)} (verbs: {', '.join(VERBS)})", file=sys.stderr)
        raise SystemExit(2)
    try:
        from ldm_lightning.cli.hydra_main import run  # after the cheap answers: this imports torch

        run(verb)
    except KeyboardInterrupt:
        print(f"ldm {verb}: interrupted", file=sys.stderr)
        raise SystemExit(130) from None
