"""All peers, in the order of the tables."""

from __future__ import annotations

from .limit import Limit
from .orbax import OrbaxV0, OrbaxV1
from .peers import Braintools, Equinox, Flax, NumpySavez, Ours, Peer, Pickle, SafetensorsFlax, SafetensorsNumpy

PEERS: dict[str, type[Peer]] = {
    peer.name: peer
    for peer in (
        Limit,
        Ours,
        Braintools,
        Flax,
        SafetensorsFlax,
        SafetensorsNumpy,
        OrbaxV0,
        OrbaxV1,
        Equinox,
        NumpySavez,
        Pickle,
    )
}
