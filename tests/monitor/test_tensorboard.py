"""What TensorBoard's own reader finds in the event files."""

import html
import io
import math
import re

import numpy as np
import pytest
import torch
from PIL import Image
from tensorboard import plugin_util
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.plugins.hparams import api_pb2, metadata
from tensorboard.summary.writer import event_file_writer

from tests.monitor.fake import CONFIG, loss, monitors, play, progress
from trainer.monitor.pictures import RIGHT, WRONG


@pytest.fixture(autouse=True)
def few_writers(monkeypatch):
    """Files of one second are ordered by their writer's number, as text: 10 before 9."""
    monkeypatch.setattr(event_file_writer, "_global_uid", event_file_writer.AtomicCounter(0))


def read(directory):
    return EventAccumulator(str(directory), size_guidance={"tensors": 0, "images": 0, "scalars": 0}).Reload()


def points(events, tag):
    return [(event.step, event.value) for event in events.Scalars(tag)]


def steps(events, tag):
    return [event.step for event in events.Scalars(tag)]


@pytest.fixture(scope="module")
def events(tmp_path_factory):
    directory = tmp_path_factory.mktemp("run")
    told = monitors(directory, "tensorboard")
    told.finish("finished", play(told, 1, 60))
    assert [path.name.split(".")[2] for path in directory.iterdir()] == ["tfevents"]
    return read(directory)


def test_scalars_against_steps_and_seconds(events):
    assert set(events.Tags()["scalars"]) == {
        *("train/loss", "train/accuracy", "train/lr", "test/loss", "test/accuracy"),
        *("by_seconds/train/loss", "by_seconds/train/accuracy"),
        *("by_seconds/test/loss", "by_seconds/test/accuracy", "best/test/loss", "best/test/accuracy"),
        *("speed/samples_per_second", "speed/data_wait", "speed/flops_per_second", "speed/memory_mib"),
        *(f"curvature/share/layer{i}" for i in range(3)),
        *(f"curvature/share_over_layers/{name}" for name in ("min", "median", "max")),
    }
    expected = [(step, pytest.approx(loss(step), rel=1e-6)) for step in range(5, 61, 5)]
    assert points(events, "train/loss") == expected
    assert points(events, "by_seconds/train/loss") == [(step // 2, value) for step, value in expected]
    assert steps(events, "test/accuracy") == [10, 20, 30, 40, 50, 60]
    assert steps(events, "by_seconds/test/accuracy") == [5, 10, 15, 20, 25, 30]


def test_best(events):
    assert steps(events, "best/test/loss") == steps(events, "best/test/accuracy") == [10, 20, 30, 50]
    assert points(events, "best/test/accuracy")[-1] == (50, pytest.approx(math.exp(-loss(50))))


def test_curvature(events):
    assert points(events, "curvature/share/layer2")[0] == (10, pytest.approx(0.21))
    spread = [events.Scalars(f"curvature/share_over_layers/{name}")[-1] for name in ("min", "median", "max")]
    assert [event.value for event in spread] == pytest.approx([0.06, 0.16, 0.26])


def test_config_as_text(events):
    assert set(events.Tags()["tensors"]) >= {"config/text_summary", "summary/text_summary"}
    [text] = events.Tensors("config/text_summary")[0].tensor_proto.string_val
    lines = text.decode().splitlines()
    assert (lines[0], lines[-1]) == ("```yaml", "```")
    assert {"seed: 3", "  name: adafisher", "  lr: 0.001", "  root: null"} <= set(lines)


def test_hparams_are_those_of_the_run_itself(events):
    content = events.PluginTagToContent("hparams")
    assert metadata.EXPERIMENT_TAG not in content
    start = metadata.parse_session_start_info_plugin_data(content[metadata.SESSION_START_INFO_TAG])
    kinds = {name: value.WhichOneof("kind") for name, value in start.hparams.items()}
    assert kinds == {
        "seed": "number_value",
        "model.name": "string_value",
        "model.width": "number_value",
        "model.dropout": "number_value",
        "data.name": "string_value",
        "data.augment": "bool_value",
        "optimizer.name": "string_value",
        "optimizer.lr": "number_value",
        "optimizer.betas": "string_value",
        "schedule.name": "string_value",
    }
    assert start.hparams["optimizer.lr"].number_value == CONFIG["optimizer"]["lr"]
    end = metadata.parse_session_end_info_plugin_data(content[metadata.SESSION_END_INFO_TAG])
    assert end.status == api_pb2.STATUS_SUCCESS


def test_custom_scalars_draw_tags_that_exist(events):
    [proto] = events.Tensors("custom_scalars__config__")[0].tensor_proto.string_val
    layout = layout_pb2.Layout.FromString(proto)
    assert [category.title for category in layout.category] == ["loss", "accuracy", "curvature", "speed"]
    tags = events.Tags()["scalars"]
    for category in layout.category:
        for chart in category.chart:
            if chart.HasField("margin"):
                [series] = chart.margin.series
                assert {series.value, series.lower, series.upper} <= set(tags)
            else:
                [pattern] = chart.multiline.tag
                assert any(re.search(pattern, tag) for tag in tags), chart.title


def test_histograms(events):
    last = events.Histograms("parameters/conv.weight")[-1]
    assert (last.step, last.histogram_value.num) == (60, 100)
    assert (last.histogram_value.min, last.histogram_value.max) == (-60, 60)


def test_histograms_leave_out_what_is_not_finite(tmp_path):
    told = monitors(tmp_path, "tensorboard")
    told.histograms(
        progress(1), {"a": torch.tensor([1.0, math.nan, math.inf, 3.0]), "b": torch.tensor([math.nan])}
    )
    told.finish("finished", {})
    events = read(tmp_path)
    assert events.Tags()["histograms"] == ["parameters/a"]
    assert events.Histograms("parameters/a")[0].histogram_value.num == 2


@pytest.mark.parametrize(("channels", "count", "side"), [(1, 128, 8), (3, 5, 32), (3, 32, 96)])
def test_images_side_by_side(tmp_path, channels, count, side):
    images = torch.randn(count, channels, side, side, generator=torch.Generator().manual_seed(0))
    told = monitors(tmp_path, "tensorboard")
    told.images(progress(0), "train/batch", images)
    told.finish("finished", {})
    [event] = read(tmp_path).Images("train/batch")
    picture = np.asarray(Image.open(io.BytesIO(event.encoded_image_string)).convert("RGB"))

    shown, factor = images[:32], max(1, 64 // side)
    cell = side * factor + 2
    assert picture.shape == (math.ceil(len(shown) / 8) * cell, 8 * cell, 3)
    scaled = (shown - shown.min()) / (shown.max() - shown.min())
    for index in (0, len(shown) - 1):
        top, left = index // 8 * cell + 1, index % 8 * cell + 1
        for y, x in ((0, 0), (3, side - 1), (side - 1, 2)):
            pixel = picture[top + y * factor, left + x * factor] / 255
            assert pixel == pytest.approx(scaled[index, :, y, x].expand(3).numpy(), abs=0.01)
    assert (picture[0] == 255).all(), "a white frame"
    if len(shown) % 8:
        assert (picture[-cell:, -cell:] == 255).all(), "white where there is no image"


def test_predictions_are_green_where_right_and_red_where_wrong(tmp_path):
    told = monitors(tmp_path, "tensorboard")
    images = torch.linspace(0, 1, 3).view(3, 1, 1, 1).expand(3, 1, 8, 8)
    told.predictions(
        progress(7), "test/predictions", images, torch.tensor([3, 8, 1]), torch.tensor([5, 8, 1])
    )
    told.finish("finished", {})
    [event] = read(tmp_path).Images("test/predictions")
    assert event.step == 7
    picture = np.asarray(Image.open(io.BytesIO(event.encoded_image_string)).convert("RGB"))
    width, height = 8 * 12 + 4, 8 * 12 + 20 + 4
    assert picture.shape == (height, 6 * width, 3)
    captions = [picture[3, number * width + 3] for number in range(3)]
    assert [tuple(color) for color in captions] == [WRONG, RIGHT, RIGHT]
    shades = [picture[height // 2, number * width + width // 2] for number in range(3)]
    assert [tuple(shade) for shade in shades] == [(0, 0, 0), (127, 127, 127), (255, 255, 255)]


def test_text_is_shown_as_it_is(tmp_path):
    text = "# no heading\n\n    *indented* <b>\n```\n"
    told = monitors(tmp_path, "tensorboard")
    told.text(progress(3), "val/sample", text)
    told.finish("finished", {})
    [event] = read(tmp_path).Tensors("val/sample/text_summary")
    assert event.step == 3
    shown = plugin_util.markdown_to_safe_html(event.tensor_proto.string_val[0])
    assert (
        html.unescape(shown.removeprefix("<pre><code>").removesuffix("</code></pre>")).strip() == text.strip()
    )


def test_after_resuming_what_came_after_the_checkpoint_is_gone(tmp_path):
    first = monitors(tmp_path, "tensorboard")
    play(first, 1, 30)
    state = first.state_dict()
    play(first, 31, 48)
    first.sinks["tensorboard"]._writer.flush()  # as far as a killed run gets

    second = monitors(tmp_path, "tensorboard", resumed_step=30)
    second.load_state_dict(state)
    second.train(progress(35), {"train/loss": -1.0}, {})
    second.evaluation(progress(40), {"test/loss": 0.0, "test/accuracy": 0.1}, {})
    second.finish("preempted", {})
    events = read(tmp_path)
    assert steps(events, "train/loss") == [5, 10, 15, 20, 25, 30, 35]
    assert steps(events, "by_seconds/train/loss") == [2, 5, 7, 10, 12, 15, 17]
    assert points(events, "train/loss")[-1] == (35, -1.0)
    assert steps(events, "best/test/accuracy") == [10, 20, 30], "the best before the checkpoint is remembered"


def test_resumed_twice_from_one_checkpoint(tmp_path):
    first = monitors(tmp_path, "tensorboard")
    play(first, 1, 20)
    state = first.state_dict()
    for _ in range(2):
        again = monitors(tmp_path, "tensorboard", resumed_step=20)
        again.load_state_dict(state)
        play(again, 21, 30)
        again.sinks["tensorboard"]._writer.flush()
    assert steps(read(tmp_path), "train/loss") == [5, 10, 15, 20, 25, 30]


def test_a_new_run_in_an_old_directory_starts_anew(tmp_path):
    for last in (60, 10):
        told = monitors(tmp_path, "tensorboard")
        told.finish("failed", play(told, 1, last))
    assert steps(read(tmp_path), "train/loss") == [5, 10]
