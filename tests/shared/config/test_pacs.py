"""Settings of a PACS that cannot be, or that would send patients in the open, are refused by name."""

from __future__ import annotations

from typing import Any

import pytest

from shared.config.loading import validate
from shared.config.site import Site
from shared.errors import ConfigError

WORD = "QZJX"

REACH = {"dicomweb": {"url": "https://pacs.example/dicom-web"}}
DIMSE = {"host": "127.0.0.1", "port": 104, "called_ae": "ARCHIVE", "calling_ae": "US", "listen_port": 11112}


def checked(pacs: dict[str, Any], **site: Any) -> Site:
    return validate({"name": "a", "pacs": pacs, **site}, Site, source="site.yaml")


@pytest.mark.parametrize(("pacs", "said"), [
    ({"patients": "p"}, "`dicomweb` or `dimse`"),
    ({"patients": "p", **REACH, "dimse": DIMSE}, "`dicomweb` or `dimse`"),
    (REACH, "`pacs.patients` is required"),
    ({"patients": "p", "dicomweb": {"url": "http://pacs.example/x"}}, "unencrypted"),
    ({"patients": "p", "dicomweb": {"url": "http://127.0.0.1.evil.example/x"}}, "unencrypted"),
    ({"patients": "p", "dicomweb": {"url": f"https://user:{WORD}@pacs.example"}}, "no user, password"),
    ({"patients": "p", "dicomweb": {"url": f"https://pacs.example/x?token={WORD}"}}, "no user, password or query"),
    ({"patients": "p", "dicomweb": {"url": "ftp://pacs.example"}}, "https://"),
    ({"patients": "p", "dicomweb": {"url": "https://h", "token": WORD}}, "unknown key `pacs.dicomweb.token`"),
    ({"patients": "p", "dicomweb": {"url": "https://h", "key": "k"}}, "go together"),
    ({"patients": "p", "dicomweb": {"url": "https://h", "token_file": "f", "token_variable": "V"}}, "not both"),
    ({"patients": "p", "dimse": DIMSE | {"host": "10.0.0.1"}}, "unencrypted"),
    ({"patients": "p", "dimse": DIMSE | {"listen_host": "0.0.0.0"}}, "unencrypted"),
    ({"patients": "p", "dimse": DIMSE | {"peers": {"A": "10.0.0.1"}}}, "unencrypted"),
    ({"patients": "p", "dimse": DIMSE | {"certificate": "c"}}, "all three or none"),
    ({"patients": "p", "dimse": DIMSE | {"calling_ae": "SEVENTEEN LETTERS"}}, "calling_ae"),
    ({"patients": "p", "dimse": DIMSE | {"calling_ae": " US"}}, "calling_ae"),
    ({"patients": "p", "dimse": DIMSE | {"port": 70000}}, "pacs.dimse.port"),
])  # fmt: skip
def test_settings_that_cannot_be_are_refused_and_no_secret_is_repeated(pacs: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        checked(pacs)
    assert said in str(caught.value) and WORD not in str(caught.value) and "\n" not in str(caught.value)


def test_a_site_has_one_source() -> None:
    with pytest.raises(ConfigError, match="`data`, a folder to read, or `pacs`"):
        validate({"name": "a"}, Site, source="x")
    with pytest.raises(ConfigError, match="`data`, a folder to read, or `pacs`"):
        checked({"patients": "p", **REACH}, data="d")
    with pytest.raises(ConfigError, match="holds DICOM"):
        checked({"patients": "p", **REACH}, format="nifti")


def test_another_host_without_tls_is_asked_only_when_the_site_says_so() -> None:
    allowed = {"allow_unencrypted": True}
    assert checked({"patients": "p", "dicomweb": {"url": "http://pacs.example/x"} | allowed}).pacs
    assert checked({"patients": "p", "dimse": DIMSE | {"host": "10.0.0.1", "listen_host": "0.0.0.0"} | allowed}).pacs
    assert checked({"patients": "p", "dicomweb": {"url": "http://localhost:8042/x"}}).pacs
