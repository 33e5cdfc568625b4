"""Through which interface training workers talk to each other."""

import socket
import sys

import pytest

from cluster.training import interface_of


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="asks Linux for the addresses of interfaces")
def test_an_interface_is_found_by_its_address():
    assert interface_of("127.0.0.1") == "lo"
    assert interface_of("203.0.113.7") is None
    assert "lo" in [name for _, name in socket.if_nameindex()]
