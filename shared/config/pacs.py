"""How a hospital's archive of images (PACS) is reached: part of the site's own file, never sent.

No secret stands in the file itself: a token and a private key are named by their files, or by a variable of the
environment. Without TLS only this machine itself is asked, unless `allow_unencrypted` says that the network is trusted.

Left out: passwords (Basic authentication), proxies, and the making of certificates.
"""

from __future__ import annotations

import ipaddress
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

from pydantic import Field, model_validator

from shared.config.record import Positive, PositiveFloat, Record

Port = Annotated[int, Field(gt=0, lt=65536)]
# PS3.5, 6.2: at most 16 characters of the default repertoire; spaces around it mean nothing, so none are allowed here
AETitle = Annotated[str, Field(pattern=r"^[!-\[\]-~](?:[ -\[\]-~]{0,14}[!-\[\]-~])?$")]


class Dicomweb(Record):
    """A PACS that speaks DICOMweb (PS3.18: QIDO-RS to search, WADO-RS to retrieve).

    url             of the service, e.g. https://pacs.example/dicom-web
    token_file      file that holds an OAuth bearer token; read anew for each request, so that it may be refreshed
    token_variable  variable of the environment that holds the token instead
    certificate     PEM of this client's certificate, for mutual TLS
    key             PEM of its private key
    ca              PEM of the authority that signed the PACS's certificate; none: the public ones
    allow_unencrypted  also without TLS to another machine: the network is trusted
    """

    url: str
    token_file: Path | None = None
    token_variable: str | None = None
    certificate: Path | None = None
    key: Path | None = None
    ca: Path | None = None
    allow_unencrypted: bool = False

    @model_validator(mode="after")
    def _consistent(self) -> Dicomweb:
        parts = urlsplit(self.url)
        if parts.username is not None or parts.password is not None or parts.query or parts.fragment:
            raise ValueError("the url must hold no user, password or query; name a `token_file` instead")
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("the url must begin with https:// and name a host")
        if parts.scheme == "http":
            _refuse_unencrypted(parts.hostname, self.allow_unencrypted, "an https:// url")
        if self.token_file and self.token_variable:
            raise ValueError("give `token_file` or `token_variable`, not both")
        if (self.certificate is None) != (self.key is None):
            raise ValueError("`certificate` and `key` go together; give both or neither")
        return self


class Dimse(Record):
    """A PACS that speaks DIMSE (PS3.4, annex C): C-FIND to search, C-MOVE to have it send the images here.

    host           name or address of the PACS
    port           of the PACS
    called_ae      the PACS's application entity (AE) title
    calling_ae     our own title, which the PACS must know together with our address and `listen_port`
    listen_port    the port of this machine that the PACS sends to
    listen_host    our own address that the PACS sends to; this machine alone by default
    peers          AE titles that may send to us, each with its address; none: `called_ae` at `host`. Without TLS a title
                   and an address are claims, not proofs
    certificate    PEM of our certificate. With `key` and `ca` it turns TLS on, in both directions and with both sides'
                   certificates checked
    key            PEM of our private key
    ca             PEM of the authority that signed the PACS's certificate
    allow_unencrypted  also without TLS to another machine: the network is trusted
    """

    host: str
    port: Port
    called_ae: AETitle
    calling_ae: AETitle
    listen_port: Port
    listen_host: str = "127.0.0.1"
    peers: dict[AETitle, str] = Field(default_factory=dict)
    certificate: Path | None = None
    key: Path | None = None
    ca: Path | None = None
    allow_unencrypted: bool = False

    @model_validator(mode="after")
    def _consistent(self) -> Dimse:
        given = [name for name in ("certificate", "key", "ca") if getattr(self, name) is not None]
        if given and len(given) < 3:
            raise ValueError("`certificate`, `key` and `ca` go together; give all three or none")
        if not given:
            for host in (self.host, self.listen_host, *self.peers.values()):
                _refuse_unencrypted(host, self.allow_unencrypted, "`certificate`, `key` and `ca`")
        return self

    @property
    def encrypted(self) -> bool:
        return self.certificate is not None


class Pacs(Record):
    """What is asked of a PACS, and how gently.

    patients               file of the patients to fetch: one identifier a line, or CSV with the columns patient_id[,issuer]
    requests_per_second    searches and retrievals, at most
    instances_per_second   images, at most
    tries                  how often a request is made before the PACS counts as silent
    first_wait_s           seconds before the second try; each later wait is twice as long
    timeout_s              seconds without any answer
    """

    patients: Path
    dicomweb: Dicomweb | None = None
    dimse: Dimse | None = None
    requests_per_second: PositiveFloat = 5.0
    instances_per_second: PositiveFloat = 100.0
    tries: Positive = 4
    first_wait_s: PositiveFloat = 1.0
    timeout_s: PositiveFloat = 60.0

    @model_validator(mode="after")
    def _one_way(self) -> Pacs:
        if (self.dicomweb is None) == (self.dimse is None):
            raise ValueError("give `dicomweb` or `dimse`, one of the two")
        return self


def _refuse_unencrypted(host: str, allowed: bool, instead: str) -> None:
    if not allowed and not _is_this_machine(host):
        raise ValueError(
            f"without TLS the images of patients would cross the network unencrypted; give {instead}, "
            "or say `allow_unencrypted: true`"
        )


def _is_this_machine(host: str) -> bool:
    """Whether the name or address is the loopback's; a name is not looked up."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
