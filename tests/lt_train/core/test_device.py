"""An unavailable device is rejected, with the devices to use instead."""

import pytest
import torch

from lt_train.core.device import check_device
from lt_train.core.errors import UserError


def machine(monkeypatch: pytest.MonkeyPatch, devices: int) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: devices > 0)
    monkeypatch.setattr("torch.cuda.device_count", lambda: devices)


@pytest.mark.parametrize("device", ["cpu", "cuda", "cuda:0", "cuda:1"])
def test_an_available_device_is_returned(monkeypatch: pytest.MonkeyPatch, device: str) -> None:
    machine(monkeypatch, 2)
    assert check_device(device) == torch.device(device)


@pytest.mark.parametrize(
    ("device", "devices", "match"),
    [
        ("cuda", 0, "^device cuda is not available: this machine has no CUDA device; use cpu$"),
        ("cuda:0", 0, "^device cuda:0 is not available: this machine has no CUDA device; use cpu$"),
        ("cuda:1", 1, "device cuda:1 is not available: this machine has cuda:0 only"),
        ("cuda:7", 2, r"device cuda:7 is not available: this machine has cuda:0 \.\. cuda:1"),
        ("warp", 1, "device must be cpu, cuda or cuda:N such as cuda:1, got 'warp'"),
        ("cuda:", 1, "got 'cuda:'"),
        ("cuda:-1", 1, "got 'cuda:-1'"),
        ("cpu\n", 1, r"got 'cpu\\n'"),
        ("", 1, "got ''"),
    ],
)
def test_an_unavailable_device_is_rejected(
    monkeypatch: pytest.MonkeyPatch, device: str, devices: int, match: str
) -> None:
    machine(monkeypatch, devices)
    with pytest.raises(UserError, match=match):
        check_device(device)
