"""A PACS that speaks DICOMweb: QIDO-RS to search, WADO-RS to retrieve (PS3.18, 10.4 and 10.6).

Only the configured address is contacted: redirections are refused, and the environment's proxies and .netrc are not used.

Left out: retrieval of single instances and of frames; upload.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from types import TracebackType
from typing import Any, TypeVar

import requests
from dicomweb_client import DICOMwebClient
from requests.auth import AuthBase

from client.deidentification.redaction import instead
from client.pacs import multipart
from client.pacs.archive import Pace, Put, Series, Unanswered, uid
from client.pacs.credentials import private, readable
from shared.config.pacs import Dicomweb, Pacs
from shared.errors import DataError

T = TypeVar("T")

PATIENT, STUDY, SERIES, INSTANCE = "00100020", "0020000D", "0020000E", "00080018"
MODALITY = "00080060"
CHUNK_BYTES = 1 << 20


class DicomwebArchive:
    """See `client.pacs.archive.Archive`."""

    def __init__(self, pacs: Pacs) -> None:
        assert pacs.dicomweb is not None
        self._requests, self._instances = Pace(pacs.requests_per_second), Pace(pacs.instances_per_second)
        self._session = _session(pacs.dicomweb)
        self._client = DICOMwebClient(pacs.dicomweb.url.rstrip("/"), session=self._session, timeout=pacs.timeout_s)
        self._timeout_s = pacs.timeout_s
        self._client.set_http_retry_params(retry=False)  # `archive.patiently` does

    def __enter__(self) -> DicomwebArchive:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._session.close()

    def ping(self) -> None:
        self._ask(lambda: self._client.search_for_studies(limit=1, search_filters={"Modality": "MR"}))

    def find(self, patient: str, modality: str) -> list[Series]:
        client, found = self._client, []
        wanted = {"PatientID": patient, "ModalitiesInStudy": modality}
        for study in self._all(STUDY, client.search_for_studies, search_filters=wanted):
            if _value(study, PATIENT) not in (None, patient):
                continue
            study_uid = uid(_value(study, STUDY))
            for series in self._all(SERIES, client.search_for_series, study_uid, search_filters={"Modality": modality}):
                if _value(series, MODALITY) not in (None, modality):
                    continue
                series_uid = uid(_value(series, SERIES))
                instances = self._all(INSTANCE, client.search_for_instances, study_uid, series_uid)
                found.append(
                    Series(study_uid, series_uid, frozenset(uid(_value(item, INSTANCE)) for item in instances))
                )
        return found

    def fetch(self, series: Series, put: Put) -> None:
        def run() -> None:
            # Byte for byte as the server stores it: parsing is `client.deidentification.reader`'s work
            accept = 'multipart/related; type="application/dicom"; transfer-syntax=*'
            url = f"{self._client.base_url}/studies/{series.study}/series/{series.uid}"
            with self._session.get(url, headers={"Accept": accept}, stream=True, timeout=self._timeout_s) as answer:
                answer.raise_for_status()
                for content in multipart.bodies(
                    answer.headers.get("Content-Type", ""), answer.iter_content(CHUNK_BYTES)
                ):
                    put(content)
                    self._instances.wait()

        self._ask(run)

    def _all(
        self, key: str, search: Callable[..., list[dict[str, Any]]], *level: str, **filters: Any
    ) -> list[dict[str, Any]]:
        """Every result, page after page, until a page brings nothing new; `key` tells results apart."""
        found: dict[object, dict[str, Any]] = {}
        asked = 0
        while True:
            page = self._ask(lambda: search(*level, offset=asked, **filters))  # noqa: B023
            before = len(found)
            found |= {_value(item, key): item for item in page}
            asked += len(page)
            if len(found) == before:
                return list(found.values())

    def _ask(self, call: Callable[[], T]) -> T:
        self._requests.wait()
        return instead(call, _explain)


class _Bearer(AuthBase):
    """An OAuth 2.0 bearer token (RFC 6750), read anew for each request."""

    def __init__(self, way: Dicomweb) -> None:
        self._file, self._variable = way.token_file, way.token_variable
        self._token()

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        request.headers["Authorization"] = f"Bearer {self._token()}"
        return request

    def _token(self) -> str:
        token = (private(self._file, "token_file") if self._file else os.environ.get(self._variable or "", "")).strip()
        if not token or not token.isascii() or not token.isprintable() or " " in token:
            raise DataError("`token_file` or `token_variable` of the site file leads to no token")
        return token


def _session(way: Dicomweb) -> requests.Session:
    session = requests.Session()
    session.trust_env = False  # else HTTPS_PROXY and .netrc would decide who is asked, and as whom
    session.max_redirects = 0
    if way.token_file or way.token_variable:
        session.auth = _Bearer(way)
    if way.ca:
        readable(way.ca, "ca")
        session.verify = str(way.ca)
    if way.certificate and way.key:
        readable(way.certificate, "certificate")
        private(way.key, "key")
        session.cert = (str(way.certificate), str(way.key))
    return session


def _value(item: dict[str, Any], tag: str) -> object:
    """First value of an attribute in the DICOM JSON model (PS3.18, F.2); None when absent."""
    values = item.get(tag, {}).get("Value") or [None]
    return values[0]


def _explain(error: BaseException) -> Unanswered:
    """Fixed words for a failed request: its text would hold the address that was asked for, and so identifiers."""
    why, final = "its answer could not be read", False
    match error:
        case requests.exceptions.SSLError():
            why, final = "its TLS certificate is not one that `ca` signed for this host, or ours was refused", True
        case requests.exceptions.TooManyRedirects():
            why, final = "it sends us to another address, which is not followed; set `url` to the final one", True
        case requests.exceptions.HTTPError() if error.response is not None:
            status = error.response.status_code
            final = status in (401, 403)
            why = f"it does not accept our token or certificate (HTTP {status})" if final else f"HTTP status {status}"
        case requests.exceptions.Timeout():
            why = "no answer within `timeout_s`"
        case requests.exceptions.ConnectionError() | requests.exceptions.ChunkedEncodingError() | EOFError():
            why = "no connection, or it broke off"
    return Unanswered(why, final=final)
