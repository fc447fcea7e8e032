"""Each worker draws the ports of its servers from its own: none of two is given what the other waits to listen on."""

from tests.support import ports


def test_no_port_is_given_to_two_workers(monkeypatch):
    slices = []
    for worker in ("gw0", "gw1", "gw2", "gw3", ""):
        monkeypatch.setenv("PYTEST_XDIST_WORKER", worker)
        (one,) = {port % ports.SLICES for port in ports.free_ports(20)}
        slices.append(one)
    assert len(set(slices)) == len(slices)
