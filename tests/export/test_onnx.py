"""An ONNX file says what its network says: any batch size, raw pixels in, nothing beside it."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from torch import Tensor, nn

from trimtab.errors import ExportError, UnsafeError
from trimtab.export.onnx import export_graph, open_onnx, slim, write_onnx
from trimtab.measure.quality import network_call
from trimtab.models.build import Network
from trimtab.records.schema import Schema

COLOUR = Schema(classes=("a", "b", "c"), channels=3, height=12, width=10,
                mean=(120.0, 110.0, 100.0), std=(60.0, 55.0, 50.0))  # fmt: skip


class Squeeze(nn.Module):
    """A user's own block: squeeze and excitation, as in MobileNetV3."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gate = nn.Conv2d(channels, channels, 1)

    def forward(self, inputs: Tensor) -> Tensor:
        """Scale channels by a gate."""
        pooled = inputs.mean((2, 3), keepdim=True)
        return inputs * nn.functional.hardsigmoid(self.gate(pooled))


def network(schema: Schema = COLOUR) -> Network:
    """Return a small network with everything the product's own networks use."""
    torch.manual_seed(0)
    body = nn.Sequential(
        nn.Conv2d(schema.channels, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False), nn.BatchNorm2d(8), nn.Hardswish(),
        Squeeze(8), nn.MaxPool2d(2), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.5),
        nn.Linear(8, len(schema.classes)),
    )  # fmt: skip
    for part in body.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.running_mean = torch.randn(8)
            part.running_var = torch.rand(8) + 0.5
    return Network(schema, body).eval()


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The network's file."""
    path = tmp_path_factory.mktemp("onnx") / "model.onnx"
    write_onnx(network(), COLOUR, path)
    return path


def pictures(count: int) -> np.ndarray:
    """Return random uint8 pictures (N, H, W, C)."""
    shape = (count, COLOUR.height, COLOUR.width, COLOUR.channels)
    return np.random.default_rng(1).integers(0, 256, shape, dtype=np.uint8)


@pytest.mark.parametrize("count", [1, 2, 7, 64])
def test_every_batch_size_gives_the_networks_logits(file: Path, count: int) -> None:
    pixels = pictures(count)
    wanted = network_call(network())(pixels)
    assert np.abs(open_onnx(file, threads=1)(pixels) - wanted).max() < 1e-5 * np.abs(wanted).max()


def test_the_normalisation_stands_inside_and_batch_norm_is_folded(file: Path) -> None:
    kinds = [node.op_type for node in onnx.load(str(file)).graph.node]
    assert kinds[:3] == ["Transpose", "Cast", "Sub"]
    assert "Div" not in kinds
    assert "BatchNormalization" not in kinds


def test_the_file_is_sound_onnx(file: Path) -> None:
    onnx.checker.check_model(onnx.load(str(file)), full_check=True)


def test_adaptive_pooling_is_no_gather(file: Path) -> None:
    kinds = {node.op_type for node in onnx.load(str(file)).graph.node}
    assert "GlobalAveragePool" in kinds
    assert not kinds & {"Gather", "Range", "Shape"}


def test_input_and_output_are_what_the_card_promises(file: Path) -> None:
    graph = onnx.load(str(file)).graph
    image, logits = graph.input[0], graph.output[0]
    assert (image.name, logits.name) == ("image", "logits")
    assert image.type.tensor_type.elem_type == TensorProto.UINT8
    sizes = [d.dim_value for d in image.type.tensor_type.shape.dim]
    assert sizes == [0, COLOUR.height, COLOUR.width, COLOUR.channels]


def test_a_file_is_little_more_than_its_weights(file: Path) -> None:
    params = sum(p.numel() for p in network().parameters())
    assert file.stat().st_size < 4 * params + 4000


def test_the_file_names_no_source_code_of_this_machine(file: Path) -> None:
    content = file.read_bytes()
    assert not [
        word for word in (b".py", b"torch.export", b"/home", b"site-packages") if word in content
    ]


def test_writing_is_silent_and_leaves_the_network_as_it_was(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    trained = network().train()
    before = {name: value.clone() for name, value in trained.state_dict().items()}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        write_onnx(trained, COLOUR, tmp_path / "model.onnx")
    assert capfd.readouterr() == ("", "")
    assert trained.training
    assert all(torch.equal(before[name], value) for name, value in trained.state_dict().items())


def test_a_network_that_branches_on_its_data_is_refused(tmp_path: Path) -> None:
    class Branching(nn.Module):
        def forward(self, inputs: Tensor) -> Tensor:
            return inputs.mean((2, 3)) if inputs.sum() > 0 else inputs.amax((2, 3))

    with pytest.raises(ExportError, match="cannot be written as ONNX"):
        write_onnx(Network(COLOUR, Branching()), COLOUR, tmp_path / "model.onnx")
    assert list(tmp_path.iterdir()) == []


def test_a_grey_picture_has_one_channel(tmp_path: Path) -> None:
    grey = COLOUR.model_copy(update={"channels": 1, "mean": (90.0,), "std": (40.0,)})
    write_onnx(network(grey), grey, tmp_path / "grey.onnx")
    pixels = pictures(3)[..., :1]
    found = open_onnx(tmp_path / "grey.onnx")(np.ascontiguousarray(pixels))
    assert np.allclose(found, network_call(network(grey))(pixels), atol=1e-5)


def test_a_division_that_feeds_more_than_a_convolution_stays() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 3, padding=1)

        def forward(self, inputs: Tensor) -> Tensor:
            return (self.conv(inputs) + inputs).mean((2, 3))

    module = Network(COLOUR, Twice()).eval()
    graph = slim(export_graph(module, COLOUR))
    pixels = pictures(2)
    assert "Div" in [node.op_type for node in graph.graph.node]
    found = open_onnx(graph.SerializeToString())(pixels)
    assert np.allclose(found, network_call(module)(pixels), atol=1e-4)


@pytest.mark.parametrize("place", ["../../etc/passwd", "/etc/passwd", "weights.bin"])
@pytest.mark.parametrize("where", ["initializer", "constant"])
def test_weights_in_another_file_are_refused(tmp_path: Path, place: str, where: str) -> None:
    outside = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[3],
                          data_location=TensorProto.EXTERNAL)  # fmt: skip
    outside.external_data.add(key="location", value=place)
    node = helper.make_node("Add", ["image", "w"], ["logits"])
    nodes = [node] if where == "initializer" else [
        helper.make_node("Constant", [], ["w"], value=outside), node]  # fmt: skip
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("image", TensorProto.FLOAT, [3])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [3])],
        [outside] if where == "initializer" else [],
    )  # fmt: skip
    (tmp_path / "m.onnx").write_bytes(helper.make_model(graph).SerializeToString())
    with pytest.raises(UnsafeError, match="other files"):
        open_onnx(tmp_path / "m.onnx")


def test_what_is_no_onnx_is_refused(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(b"\x80\x04evil pickle")
    with pytest.raises(UnsafeError, match="no ONNX"):
        open_onnx(tmp_path / "m.onnx")
