"""The hospital's Flower ClientApp, thin: request -> policy -> ledger -> train -> reply.

A deployed node names its site file in the node configuration (`site="/path/site.yaml"`). In a simulation, nodes have no
configuration, so the runner names a folder of sites in the environment and the partition says which one; a coordinator
can set neither.
"""

from __future__ import annotations

import os
from pathlib import Path

from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp

from client import dataset, policy
from client.train import train
from privacy.accounting import Event
from privacy.ledger import Ledger
from shared import messages, weights
from shared.config import Site, read
from shared.device import device_for
from shared.errors import DataError, FederationError, FedsynthError
from shared.network import shapes

SITES_VARIABLE = "FEDSYNTH_SIMULATED_SITES"

app = ClientApp()


@app.train()  # type: ignore[untyped-decorator]  # flwr is untyped for us
def on_train(message: Message, context: Context) -> Message:
    """Answer a training request with an update, or with a refusal that says why."""
    name = "unknown"
    try:
        site, work = locate(context)
        name = site.name
        content = messages.pack_reply(_work(message.content, site, work, run=str(context.run_id)))
    except DataError:  # its text may speak of local files, so it stays here
        content = messages.pack_refusal(messages.Refusal(name, "the site's data cannot be used; its own log says why"))
    except FedsynthError as error:
        content = messages.pack_refusal(messages.Refusal(name, f"{type(error).__name__}: {error}"))
    return Message(content=content, reply_to=message)


def _work(content: RecordDict, site: Site, work: Path, run: str) -> messages.TrainReply:
    experiment, number, noise_multiplier, arrays = messages.unpack_request(content)
    policy.check(site, experiment, noise_multiplier)
    device = device_for(experiment.performance)
    model = weights.load_base(experiment.base, experiment.network, experiment.classes)
    received = messages.tensors(arrays, shapes(model.trainable(experiment.training.trainable)), "the request's arrays")
    model.load_state_dict(received, strict=False)
    cohort = dataset.load(work / "cohort")
    # Spend before you act: from here on the budget counts as used, whatever happens
    ledger = Ledger(work / "ledger.jsonl", cohort=dataset.cohort_id(work), cap=policy.cap(site), delta=site.delta)
    event = Event(noise_multiplier, experiment.privacy.sampling_rate, experiment.training.steps)
    epsilon = ledger.reserve(event, run=run, purpose=f"{experiment.name}, round {number}")
    update = train(
        model.to(device),
        cohort,
        experiment,
        noise_multiplier=noise_multiplier,
        expected_patients=experiment.expected_patients,
    )
    return messages.TrainReply(site.name, update, epsilon, site.weight, experiment.training.steps)


def locate(context: Context) -> tuple[Site, Path]:
    """The site's settings and its work folder (the folder of its file)."""
    if "site" in context.node_config:
        path = Path(str(context.node_config["site"]))
    elif SITES_VARIABLE in os.environ:
        folders = sorted(p.parent for p in Path(os.environ[SITES_VARIABLE]).glob("*/site.yaml"))
        partition = int(context.node_config["partition-id"])
        if partition >= len(folders):
            raise FederationError(
                f"there is no site for partition {partition}; the simulation has {len(folders)} sites"
            )
        path = folders[partition] / "site.yaml"
    else:
        raise FederationError("this node has no site; start it with --node-config 'site=\"/path/site.yaml\"'")
    return read(path, Site), path.parent
