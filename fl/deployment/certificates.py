"""Make a private certificate authority, the SuperLink's certificate and the SuperNodes' keys.

certs/ca/         ca.pem and ca-key.pem, the authority; keep the key here, off the network
certs/superlink/  for the SuperLink's host: ca.pem, server.pem, server-key.pem, and the public keys
                  of the nodes to register
certs/node-I/     for the host of node I: ca.pem and node.key, its private key
"""

import datetime
import ipaddress
import os
from collections.abc import Sequence
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from fl.config import ConfigError
from fl.engines.commands import CA, CERTIFICATE, KEY, NODE_KEY

AUTHORITY, SUPERLINK = "ca", "superlink"
CA_KEY = "ca-key.pem"
LOCAL = ("localhost", "127.0.0.1", "::1")  # used by the ServerApp and the command line
YEARS_CA, DAYS_SERVER = 10, 825


def make_certificates(folder: Path, hosts: Sequence[str], nodes: Sequence[int]) -> list[Path]:
    """Write the missing files; returns their paths.

    An existing authority is reused, so nodes can be added later. Delete server.pem to get a new
    certificate.

    Args:
        folder: made if needed; private keys are readable by their owner only.
        hosts: names or addresses by which nodes reach the SuperLink; the local ones are added.
        nodes: numbers (`partition-id`) of the nodes that get a key.

    Raises:
        ConfigError: the key of an existing authority is missing.
    """
    written: list[Path] = []

    def write(path: Path, content: bytes, private: bool = False) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        mode = 0o600 if private else 0o644
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
            file.write(content)
        written.append(path)

    authority, key = folder / AUTHORITY / CA, folder / AUTHORITY / CA_KEY
    if not authority.exists():
        ca = ec.generate_private_key(ec.SECP384R1())
        write(key, _private(ca, PrivateFormat.PKCS8), private=True)
        write(authority, _authority_certificate(ca).public_bytes(Encoding.PEM))
    if not key.exists():
        raise ConfigError(f"{key} is missing, so the authority cannot sign new certificates")
    for name in (SUPERLINK, *(f"node-{i}" for i in nodes)):
        if not (folder / name / CA).exists():
            write(folder / name / CA, authority.read_bytes())
    server = folder / SUPERLINK
    if not (server / CERTIFICATE).exists():
        own = ec.generate_private_key(ec.SECP384R1())
        (server / KEY).unlink(missing_ok=True)
        write(server / KEY, _private(own, PrivateFormat.PKCS8), private=True)
        signed = _server_certificate(own, authority, key, [*hosts, *LOCAL])
        write(server / CERTIFICATE, signed.public_bytes(Encoding.PEM))
    for i in nodes:
        if not (folder / f"node-{i}" / NODE_KEY).exists():
            pair = ec.generate_private_key(ec.SECP384R1())
            private = _private(pair, PrivateFormat.OpenSSH)
            write(folder / f"node-{i}" / NODE_KEY, private, private=True)
            public = pair.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)
            (server / f"node-{i}.pub").unlink(missing_ok=True)
            write(server / f"node-{i}.pub", public)
    return written


def _private(key: ec.EllipticCurvePrivateKey, form: PrivateFormat) -> bytes:
    return key.private_bytes(Encoding.PEM, form, NoEncryption())


def _authority_certificate(key: ec.EllipticCurvePrivateKey) -> x509.Certificate:
    name = _name("fedpatchcore private authority")
    usage = x509.KeyUsage(
        digital_signature=False, content_commitment=False, key_encipherment=False,
        data_encipherment=False, key_agreement=False, key_cert_sign=True, crl_sign=True,
        encipher_only=False, decipher_only=False,
    )  # fmt: skip
    return (
        _builder(name, name, key, 365 * YEARS_CA)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .sign(key, hashes.SHA384())
    )


def _server_certificate(
    key: ec.EllipticCurvePrivateKey, authority: Path, authority_key: Path, hosts: Sequence[str]
) -> x509.Certificate:
    issuer = x509.load_pem_x509_certificate(authority.read_bytes())
    signer = load_pem_private_key(authority_key.read_bytes(), None)
    if not isinstance(signer, ec.EllipticCurvePrivateKey):
        raise ConfigError(f"{authority_key} is not an elliptic-curve key")
    names = x509.SubjectAlternativeName([_host(host) for host in dict.fromkeys(hosts)])
    purpose = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH])
    signed_by = x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key())
    return (
        _builder(_name(hosts[0]), issuer.subject, key, DAYS_SERVER)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(names, critical=False)
        .add_extension(purpose, critical=False)
        .add_extension(signed_by, critical=False)
        .sign(signer, hashes.SHA384())
    )


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey, days: int
) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))  # the plants' clocks differ
        .not_valid_after(now + datetime.timedelta(days=days))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text[:64])])


def _host(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)
