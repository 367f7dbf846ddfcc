"""FEDERATION.yaml: what the coordinator decides once.

Left out: keys, certificates and who may join (`provision`).
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from shared.config.record import Address, Record
from shared.config.site import SiteName


class FederationFile(Record):
    """FEDERATION.yaml.

    name      of the federation; its keys and journal lie in a folder of this name
    address   host:port that the hospitals connect to; the certificate is made for this host
    listen    address of this machine to listen on; port 0 of `address` is not allowed
    """

    name: SiteName
    address: Address
    listen: Annotated[str, Field(pattern=r"^[0-9a-fA-F.:]+$")] = "0.0.0.0"  # noqa: S104 - hospitals come from outside

    @property
    def host(self) -> str:
        return self.address.rpartition(":")[0].strip("[]")

    @property
    def port(self) -> int:
        return int(self.address.rpartition(":")[2])
