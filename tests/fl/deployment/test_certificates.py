"""`fedpatchcore certs` makes an authority, a certificate signed by it, and a key for each node."""

import datetime
import stat
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_ssh_private_key
from flwr.cli.supernode.register import try_load_public_key
from flwr.supercore.primitives.asymmetric import public_key_to_bytes

from fl.cli import main as cli
from fl.config import ConfigError
from fl.deployment.certificates import make_certificates


@pytest.fixture
def certs(tmp_path: Path) -> Path:
    make_certificates(tmp_path, ["fed.example", "10.0.0.7"], range(2))
    return tmp_path


def server(certs: Path) -> x509.Certificate:
    return x509.load_pem_x509_certificate((certs / "superlink" / "server.pem").read_bytes())


def test_the_server_s_certificate_is_signed_for_its_hosts_and_the_local_ones(certs: Path) -> None:
    authority = x509.load_pem_x509_certificate((certs / "ca" / "ca.pem").read_bytes())
    signed = server(certs)
    signed.verify_directly_issued_by(authority)
    names = signed.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["fed.example", "localhost"]
    addresses = {str(a) for a in names.get_values_for_type(x509.IPAddress)}
    assert addresses == {"10.0.0.7", "127.0.0.1", "::1"}
    assert not signed.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    now = datetime.datetime.now(datetime.UTC)
    assert signed.not_valid_before_utc < now < signed.not_valid_after_utc


def test_each_folder_holds_only_what_its_host_needs(certs: Path) -> None:
    files = {f.name: {p.name for p in f.iterdir()} for f in certs.iterdir()}
    assert files == {
        "ca": {"ca.pem", "ca-key.pem"},
        "superlink": {"ca.pem", "server.pem", "server-key.pem", "node-0.pub", "node-1.pub"},
        "node-0": {"ca.pem", "node.key"},
        "node-1": {"ca.pem", "node.key"},
    }


def test_private_keys_are_readable_by_their_owner_only(certs: Path) -> None:
    for path in certs.rglob("*key*"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path


def test_flower_reads_matching_private_and_public_keys(certs: Path) -> None:
    seen = set()
    for i in range(2):
        private = load_ssh_private_key((certs / f"node-{i}" / "node.key").read_bytes(), None)
        assert isinstance(private, ec.EllipticCurvePrivateKey)
        public = public_key_to_bytes(private.public_key())
        assert try_load_public_key(certs / "superlink" / f"node-{i}.pub") == public
        seen.add(public)
    assert len(seen) == 2


def test_nodes_can_be_added_later_and_existing_files_stay(certs: Path) -> None:
    before = {path: path.read_bytes() for path in certs.rglob("*") if path.is_file()}
    new = make_certificates(certs, ["fed.example"], range(3))
    assert {path.relative_to(certs).as_posix() for path in new} == {
        "node-2/ca.pem", "node-2/node.key", "superlink/node-2.pub"
    }  # fmt: skip
    assert {path: path.read_bytes() for path in before} == before


def test_a_deleted_server_certificate_is_replaced(certs: Path) -> None:
    old = server(certs)
    (certs / "superlink" / "server.pem").unlink()
    make_certificates(certs, ["other.example"], range(2))
    assert server(certs).serial_number != old.serial_number
    server(certs).verify_directly_issued_by(
        x509.load_pem_x509_certificate((certs / "node-0" / "ca.pem").read_bytes())
    )


def test_an_authority_without_its_key_cannot_sign(certs: Path) -> None:
    (certs / "ca" / "ca-key.pem").unlink()
    with pytest.raises(ConfigError, match="is missing, so the authority cannot sign"):
        make_certificates(certs, ["fed.example"], range(3))


def test_the_command_lists_the_files_it_wrote(tmp_path, capsys, monkeypatch) -> None:
    words = ["fedpatchcore", "certs", "fed.example", "--nodes", "1", "--out", str(tmp_path / "c")]
    monkeypatch.setattr("sys.argv", words)
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert not ended.value.code
    assert len(capsys.readouterr().out.split()) == 8
