"""A PACS that speaks DIMSE: C-FIND to search, C-MOVE to have images sent to our own door (PS3.4, C.4.1 and C.4.2).

Study Root model. Before each request the PACS must accept an association with our title; after it, the association ends.

Left out: C-GET (few archives offer it); Patient Root; asynchronous operations.
"""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType

from pydicom.dataset import Dataset
from pynetdicom import AE
from pynetdicom.association import Association
from pynetdicom.transport import AddressInformation, AssociationSocket

from client.deidentification.redaction import instead
from client.pacs.archive import Pace, Put, Series, Unanswered, uid
from client.pacs.credentials import context
from client.pacs.storage_scp import PROMPT, VERIFICATION, Receiver
from shared.config.pacs import Pacs

FIND, MOVE = "1.2.840.10008.5.1.4.1.2.2.1", "1.2.840.10008.5.1.4.1.2.2.2"  # Study Root
PENDING, SUCCESS, SOME_FAILED, UNKNOWN_DESTINATION = (0xFF00, 0xFF01), 0x0000, 0xB000, 0xA801


class _Socket(AssociationSocket):
    def _shutdown_socket(self) -> None:
        """The library leaves the socket of a connection that never came about to the garbage collector."""
        super()._shutdown_socket()
        if self.socket is not None:
            self.socket.close()


class Caller(AE):
    """An application entity that closes what it opened, also when nobody answered."""

    def _create_socket(
        self, assoc: Association, address: AddressInformation, tls_args: tuple[ssl.SSLContext, str] | None
    ) -> AssociationSocket:
        made = _Socket(assoc, address=address)
        made.tls_args = tls_args
        return made


class DimseArchive:
    """See `client.pacs.archive.Archive`. The door is open from `__enter__` to `__exit__`."""

    def __init__(self, pacs: Pacs) -> None:
        assert pacs.dimse is not None
        self._pacs, self._way = pacs, pacs.dimse
        self._requests = Pace(pacs.requests_per_second)
        self._receiver = Receiver(self._way, pacs.timeout_s, Pace(pacs.instances_per_second))
        self._tls: tuple[ssl.SSLContext, str] | None = None
        if self._way.certificate and self._way.key and self._way.ca:
            made = context(ssl.Purpose.SERVER_AUTH, self._way.ca, self._way.certificate, self._way.key)
            self._tls = (made, self._way.host)

    def __enter__(self) -> DimseArchive:
        self._receiver.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._receiver.stop()

    def ping(self) -> None:
        with self._association(VERIFICATION) as association:
            status = instead(association.send_c_echo, _explain)
            _check(status)

    def find(self, patient: str, modality: str) -> list[Series]:
        found = []
        with self._association(FIND) as association:

            def search(level: str, **keys: str) -> list[Dataset]:
                self._requests.wait()
                return instead(lambda: _results(association, _query(level, **keys)), _explain)

            for study in search("STUDY", PatientID=patient, ModalitiesInStudy=modality, StudyInstanceUID=""):
                if _text(study, "PatientID") not in ("", patient):
                    continue
                study_uid = uid(_text(study, "StudyInstanceUID"))
                for series in search("SERIES", StudyInstanceUID=study_uid, Modality=modality, SeriesInstanceUID=""):
                    if _text(series, "Modality") not in ("", modality):
                        continue
                    series_uid = uid(_text(series, "SeriesInstanceUID"))
                    images = search(
                        "IMAGE", StudyInstanceUID=study_uid, SeriesInstanceUID=series_uid, SOPInstanceUID=""
                    )
                    instances = frozenset(uid(_text(image, "SOPInstanceUID")) for image in images)
                    found.append(Series(study_uid, series_uid, instances))
        return found

    def fetch(self, series: Series, put: Put) -> None:
        # Some archives answer only when all is sent, so the time that our own pace may take is allowed for
        sending_s = self._pacs.timeout_s + 2 * len(series.instances) / self._pacs.instances_per_second
        query = _query("SERIES", StudyInstanceUID=series.study, SeriesInstanceUID=series.uid)
        with (
            self._association(MOVE, answer_s=sending_s) as association,
            self._receiver.expecting(series.instances, put),
        ):
            status = instead(lambda: _move(association, query, self._way.calling_ae), _explain)
            if status.get("Status") not in (SUCCESS, SOME_FAILED):  # what is missing is asked for again
                _check(status)

    @contextmanager
    def _association(self, model: str, answer_s: float | None = None) -> Iterator[Association]:
        self._requests.wait()
        way, timeout_s = self._way, self._pacs.timeout_s
        ae = Caller(ae_title=way.calling_ae)
        ae.connection_timeout = ae.acse_timeout = timeout_s
        ae.dimse_timeout = ae.network_timeout = answer_s or timeout_s
        ae.add_requested_context(model)
        association = instead(
            lambda: ae.associate(way.host, way.port, ae_title=way.called_ae, tls_args=self._tls, evt_handlers=PROMPT),
            _explain,
        )
        if not association.is_established:
            if association.is_rejected:
                raise Unanswered(
                    f"it rejects our application entity {way.calling_ae} calling {way.called_ae}; let its "
                    "administrator add it",
                    final=True,
                )
            raise Unanswered("no association: no connection, another certificate, or a service that it does not offer")
        try:
            yield association
        finally:
            instead(association.release if association.is_established else association.abort, _explain)


def _query(level: str, **keys: str) -> Dataset:
    query = Dataset()
    if not all(value.isascii() for value in keys.values()):
        query.SpecificCharacterSet = "ISO_IR 192"
    query.QueryRetrieveLevel = level
    for keyword, value in keys.items():
        setattr(query, keyword, value)
    return query


def _results(association: Association, query: Dataset) -> list[Dataset]:
    found = []
    for status, result in association.send_c_find(query, FIND):
        if status.get("Status") in PENDING and result is not None:
            found.append(result)
        else:
            _check(status)
    return found


def _move(association: Association, query: Dataset, to: str) -> Dataset:
    """The last status of a C-MOVE."""
    last = Dataset()
    for status, _ in association.send_c_move(query, to, MOVE):
        last = status
    return last


def _check(status: Dataset) -> None:
    """Raise unless the status is success; an empty one means that the connection broke off (pynetdicom)."""
    if "Status" not in status:
        raise Unanswered(
            "no answer, or it broke the connection off, as some do that do not know our AE title or address"
        )
    if status.Status == UNKNOWN_DESTINATION:
        raise Unanswered(
            "it does not know our AE title, address and `listen_port`, so it has nowhere to send to", final=True
        )
    if status.Status != SUCCESS:
        raise Unanswered(f"status 0x{int(status.Status):04X} (PS3.4, annex C); it may not reach us at `listen_port`")


def _text(result: Dataset, keyword: str) -> str:
    return str(result.get(keyword) or "").strip(" \0")


def _explain(error: BaseException) -> Unanswered:
    """Fixed words: what the library says may hold what the PACS sent."""
    if isinstance(error, OSError):
        return Unanswered("no connection, or it broke off")
    return Unanswered("its answer could not be read")
