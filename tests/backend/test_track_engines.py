"""Track engines on the host's own code: RAFT from its loader, with seeded weights, and what its TRACKS socket carries."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import comfy.model_management
import folder_paths
import numpy as np
import pytest
import torch
from comfy_extras.nodes_wanmove import GenerateTracks, WanMoveConcatTrack
from comfy_extras.void_noise_warp import RaftOpticalFlow
from safetensors.torch import save_file
from torchvision.models.optical_flow import raft_large, raft_small

from longvie_core.control.tracks.flow import FlowTracker
from tests.helpers.places import ROOT

PACK = "longvie_pack_under_test"


@pytest.fixture(scope="module")
def engines() -> ModuleType:
    """The pack's ``nodes/engines.py``, the pack being loaded as the host does."""
    spec = importlib.util.spec_from_file_location(PACK, ROOT / "__init__.py", submodule_search_locations=[str(ROOT)])
    sys.modules[PACK] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules[PACK])
    return sys.modules[f"{PACK}.nodes.engines"]


@pytest.fixture
def flow_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The host's optical_flow folder, empty."""
    extensions = folder_paths.folder_names_and_paths["optical_flow"][1]
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "optical_flow", ([str(tmp_path)], extensions))
    folder_paths.filename_list_cache.pop("optical_flow", None)
    return tmp_path


@pytest.fixture(scope="module")
def weights() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return raft_large(weights=None).state_dict()


def pictures(width: int, height: int, count: int = 2) -> np.ndarray:
    """Noise that goes two pixels to the right a frame."""
    noise = np.random.default_rng(1).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return np.stack([np.roll(noise, 2 * number, axis=1) for number in range(count)])


def plain(weights: dict[str, torch.Tensor], frames: np.ndarray) -> np.ndarray:
    """The flow from the first frame to the second by the host's own wrapper, [H, W, 2]."""
    network = raft_large(weights=None)
    network.load_state_dict(weights)
    one, other = (torch.from_numpy(frame).movedim(-1, 0).float() / 255 for frame in frames)
    return RaftOpticalFlow(network, "cpu")(one, other).movedim(0, -1).numpy()


class TestRaft:
    def test_its_flow_is_that_of_the_hosts_wrapper(self, engines, flow_folder: Path, weights) -> None:
        save_file(weights, flow_folder / "raft.safetensors")
        assert engines.flow_files() == ["raft.safetensors"]
        raft, frames = engines.HostRaft("raft.safetensors"), pictures(144, 128)
        flow = raft(*frames)
        assert (flow.dtype, flow.shape) == (np.float32, (128, 144, 2))
        np.testing.assert_allclose(flow, plain(weights, frames), atol=1e-3)
        assert np.abs(flow).max() > 0.5
        assert any(loaded is raft.model for loaded in comfy.model_management.loaded_models())

    def test_a_small_picture_is_padded_with_its_edge(self, engines, flow_folder: Path, weights) -> None:
        torch.save(weights, flow_folder / "raft_large.pth")
        frames = pictures(64, 48)
        padded = np.pad(frames, ((0, 0), (0, 80), (0, 64), (0, 0)), mode="edge")
        flow = engines.HostRaft("raft_large.pth")(*frames)
        np.testing.assert_allclose(flow, plain(weights, padded)[:48, :64], atol=1e-3)

    def test_it_follows_points(self, engines, flow_folder: Path, weights) -> None:
        save_file(weights, flow_folder / "raft.safetensors")
        points = np.array([[10, 10], [40.5, 20.25]], np.float32)
        tracks = FlowTracker(engines.HostRaft("raft.safetensors")).track(pictures(64, 48, 3), points)
        np.testing.assert_array_equal(tracks.xy[0], points)
        assert tracks.xy.shape == (3, 2, 2) and np.isfinite(tracks.xy).all()
        assert tracks.visible.shape == (3, 2)

    def test_a_missing_file_is_named_with_its_place(self, engines, flow_folder: Path) -> None:
        assert engines.flow_files() == [engines.NONE_FOUND]
        with pytest.raises(ValueError, match=r"models/optical_flow, and there are none: put torchvision's raft_large"):
            engines.flow_file(engines.NONE_FOUND)

    @pytest.mark.parametrize("other", [lambda: raft_small(weights=None).state_dict(), lambda: {"a.weight": torch.zeros(2)}])
    def test_other_weights_are_refused(self, engines, flow_folder: Path, other) -> None:
        save_file(other(), flow_folder / "other.safetensors")
        with pytest.raises(ValueError, match=r"other.safetensors does not hold torchvision's raft_large: put"):
            engines.HostRaft("other.safetensors")


def generated(**changes: object) -> dict:
    """Three tracks from (16, 24) to (48, 24) in five frames, by the host's own node."""
    given = {"width": 64, "height": 48, "start_x": 0.25, "end_x": 0.75, "start_y": 0.5, "end_y": 0.5, "mid_x": 0, "mid_y": 0}
    return GenerateTracks.execute(**{**given, "num_frames": 5, "num_tracks": 3, "track_spread": 0.1, **changes}).result[0]


class TestTracksSocket:
    def test_the_hosts_tracks_are_pixels(self, engines) -> None:
        tracks = engines.socket_tracks(generated())
        assert tracks.xy.dtype == np.float32
        np.testing.assert_allclose(tracks.xy[:, 1], [[16, 24], [24, 24], [32, 24], [40, 24], [48, 24]], atol=1e-4)
        np.testing.assert_allclose(tracks.xy[2, :, 1], [18.4, 24, 29.6], atol=1e-4)
        assert tracks.visible.shape == (5, 3) and tracks.visible.all()

    def test_a_mask_says_when_all_are_visible(self, engines) -> None:
        mask = torch.zeros(5, 8, 8)
        mask[:3, 2, 2] = 1
        tracks = engines.socket_tracks(generated(track_mask=mask))
        np.testing.assert_array_equal(tracks.visible, np.tile([[True], [True], [True], [False], [False]], 3))

    def test_a_mask_of_another_length_is_refused(self, engines) -> None:
        with pytest.raises(ValueError, match=r"track_visibility has the shape \[4, 1\].*give \[5, 3\]"):
            engines.socket_tracks(generated(track_mask=torch.ones(4, 8, 8)))

    def test_tracks_joined_with_masked_ones_are_refused(self, engines) -> None:
        joined = WanMoveConcatTrack.execute(generated(track_mask=torch.ones(5, 8, 8)), generated()).result[0]
        with pytest.raises(ValueError, match=r"track_visibility has the shape \[5, 4\]"):
            engines.socket_tracks(joined)

    def test_half_precision_and_missing_or_soft_visibility(self, engines) -> None:
        path = generated()["track_path"].to(torch.bfloat16)
        assert engines.socket_tracks({"track_path": path}).visible.all()
        soft = engines.socket_tracks({"track_path": path, "track_visibility": torch.linspace(0, 1, 15).reshape(5, 3)})
        assert soft.visible.sum() == 7

    @pytest.mark.parametrize(
        ("given", "message"), [(None, "connect a tracker"), ({"points": 1}, "no 'track_path'"), ([], "no 'track_path'")]
    )
    def test_what_is_no_tracks_is_refused(self, engines, given: object, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            engines.socket_tracks(given)
