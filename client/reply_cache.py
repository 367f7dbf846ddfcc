"""The last finished reply of a site, kept so that a request that comes twice is answered twice and charged once.

Guarantee     what is sent again is byte for byte the update that was noised and paid for: post-processing, which costs nothing.
              Noise is never drawn a second time for one charge
Which request the same experiment, round, noise multiplier and received weights, all of them (`messages.request_id`). Not Flower's
              run number: a run that goes on after an interruption has a new one

| edge case                                          | what happens                                                     |
|----------------------------------------------------|------------------------------------------------------------------|
| killed between the charge and the finished reply   | nothing was kept: the request is charged again                   |
| killed after the reply was kept, before it was sent| the same reply is sent, nothing is charged                       |
| the same round with other weights, or other settings | another request: charged, and the reply kept so far is dropped |
| an older round, after a later one                  | its reply is gone: charged as a new request                      |
| the site's file permits less than before           | checked first: refused                                           |
| the file is damaged                                | as if there were none: charged again                             |
| the file cannot be written                         | the reply is sent all the same; asked again, it is charged again |
| training without privacy                           | nothing is kept: there is no budget to save                      |

A reply that is sent again tells the epsilon of the day it was made. Left out: more than one reply at a time.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load, save

from shared import files
from shared.crypto import keys
from shared.errors import LedgerError
from shared.messages import TrainReply

LOG = logging.getLogger("fedsynth.client")
FILE = "reply.kept"


def path(work: Path) -> Path:
    """Beside the node's key, out of the app's reach."""
    return keys.private_folder(work / "node") / FILE


def find(work: Path, request: str) -> TrainReply | None:
    """The reply that was kept for this request, or none."""
    try:
        digest, _, data = path(work).read_bytes().partition(b"\n")
        if hashlib.sha256(data).hexdigest().encode() != digest:
            raise ValueError
        head, _, tensors = data.partition(b"\n")
        about = json.loads(head)
        if about["request"] != request:
            return None
        return TrainReply(update=load(tensors), **(about | {"ledger": tuple(about["ledger"])}))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, SafetensorError):
        LOG.warning("the kept reply is damaged and not used; a request that comes again is charged again")
        return None


def keep(work: Path, reply: TrainReply) -> None:
    """Keep a finished reply in the place of the last one, whole, for its owner alone, before it is sent."""
    about = {f.name: getattr(reply, f.name) for f in dataclasses.fields(reply) if f.name not in ("update", "bytes")}
    update = {name: t.detach().cpu().float().contiguous() for name, t in reply.update.items()}
    data = json.dumps(about).encode() + b"\n" + save(update)
    try:
        files.replace(path(work), hashlib.sha256(data).hexdigest().encode() + b"\n" + data)
    except (OSError, LedgerError) as error:
        LOG.warning("the reply could not be kept (%s); if it is lost on its way, the round is charged again", error)


def drop(work: Path) -> None:
    """Forget the reply of an earlier request."""
    path(work).unlink(missing_ok=True)
