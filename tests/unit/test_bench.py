"""The comparison of methods: data and splits, features on disk, joint training, figures, command line."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console
from torch import Tensor

from cl_engine.backbones import FrozenVisionTransformer
from cl_engine.bench import cli
from cl_engine.bench.compare import Listener, Question, compare
from cl_engine.bench.data import BenchData, load_data
from cl_engine.bench.feature_files import warm
from cl_engine.bench.joint import JointSettings, train_jointly
from cl_engine.bench.memory import PeakMemory
from cl_engine.bench.report import table
from cl_engine.bench.run import MethodRun
from cl_engine.bench.stream import Stream, split_classes
from cl_engine.cached_features import CachedExtract
from cl_engine.errors import InputError
from cl_engine.features import extract
from cl_engine.samples import TensorSamples
from tests.support.small_backbone import SIZE, images, small_backbone
from tests.support.small_encoder import make_encoder

CLASSES = 6
SMALL = {"units_per_session": 4, "explore_epochs": 1, "compact_epochs": 1}


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Write 30 images of each of six classes."""
    root = tmp_path / "pictures"
    for label in range(CLASSES):
        inputs, _ = images([label], 30, seed=50 + label)
        folder = root / f"class-{label}"
        folder.mkdir(parents=True)
        for number, pixels in enumerate(inputs):
            Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(folder / f"{number}.png")
    return root


def loaded(root: Path, **changes: object) -> BenchData:
    """Load the images, or the texts."""
    wanted = {"per_class": 100, "test_per_class": 100, "holdout_fraction": 0.25} | changes
    return load_data(str(root), image_size=SIZE, **wanted)  # type: ignore[arg-type]


def question(*methods: str, **changes: object) -> Question:
    """Ask for two blocks and small learners."""
    options = {"sgds": SMALL, "joint": {"epochs": 3}, "finetune": {"epochs": 3}}
    chosen = {name: value for name, value in options.items() if name in methods}
    return replace(
        Question(methods, seeds=(1,), feature_blocks=2, adapter_blocks=2, options=chosen), **changes
    )


def test_the_parts_share_no_sample_and_follow_the_fraction(pictures: Path) -> None:
    """Training, held-out and test samples are disjoint, every class is in each, and a rerun is the same."""
    data = loaded(pictures)
    parts = [set(part.ids) for part in (data.train, data.holdout, data.test)]
    assert [len(part) for part in parts] == [CLASSES * n for n in (18, 6, 6)]
    assert sum(map(len, parts)) == len(set.union(*parts)) == CLASSES * 30
    assert data.class_names == tuple(f"class-{i}" for i in range(CLASSES))
    for part in (data.train, data.holdout, data.test):
        assert len(set(torch.bincount(part.labels).tolist())) == 1
        for index in (0, len(part.ids) - 1):
            assert part.ids[index].startswith(f"pictures/class-{int(part.labels[index])}/")
    assert list(loaded(pictures).train.ids) == list(data.train.ids)
    fewer = loaded(pictures, per_class=12)
    assert {*fewer.train.ids, *fewer.holdout.ids} < parts[0] | parts[1]
    assert [len(part.ids) for part in (fewer.train, fewer.holdout)] == [CLASSES * 9, CLASSES * 3]


def test_a_division_of_the_directory_is_kept(pictures: Path, tmp_path: Path) -> None:
    """Images in `test` are the test data."""
    root = tmp_path / "divided"
    (root / "train").mkdir(parents=True)
    for folder in pictures.iterdir():
        (root / "test" / folder.name).mkdir(parents=True)
        for number in range(5):
            (folder / f"{number}.png").rename(root / "test" / folder.name / f"{number}.png")
        folder.rename(root / "train" / folder.name)
    data = loaded(root)
    assert len(data.test.ids) == CLASSES * 5
    assert all(i.startswith("test/") for i in data.test.ids)
    assert len(data.train.ids) + len(data.holdout.ids) == CLASSES * 25


def test_bad_data_is_named(pictures: Path) -> None:
    """Too few images, too few classes, and a file that is no image."""
    with pytest.raises(ValueError, match=r"has no training sample: raise per_class \(1\)"):
        loaded(pictures, per_class=1)
    with pytest.raises(ValueError, match="has 0 directories with images"):
        loaded(pictures / "class-0")
    (pictures / "class-0" / "0.png").write_bytes(b"no image")
    data = loaded(pictures)
    wrong = [i for part in (data.train, data.holdout, data.test) for i in part.ids if "/class-0/0.png/" in i]
    [part] = [p for p in (data.train, data.holdout, data.test) if wrong[0] in p.ids]
    with pytest.raises(InputError, match=r"0\.png: the payload is not a PNG image"):
        part.load([list(part.ids).index(wrong[0])])


def test_sessions_divide_the_classes() -> None:
    """B0-Inc2 of five classes is 2 + 2 + 1, B3-Inc1 is 3 + 1 + 1; the seed draws the order."""
    assert [len(s) for s in split_classes(5, 0, 2, seed=1)] == [2, 2, 1]
    assert [len(s) for s in split_classes(5, 3, 1, seed=1)] == [3, 1, 1]
    every = split_classes(20, 0, 5, seed=1)
    assert sorted(c for session in every for c in session) == list(range(20))
    assert every == split_classes(20, 0, 5, seed=1)
    assert every != split_classes(20, 0, 5, seed=2)
    for base, increment in ((0, 5), (5, 1), (6, 1)):
        with pytest.raises(ValueError, match="do not divide 5 classes"):
            split_classes(5, base, increment, seed=1)


def test_a_learner_sees_its_session_and_never_the_test(pictures: Path) -> None:
    """Training samples of the session alone, held-out ones of all classes so far; joint training gets all."""
    data = loaded(pictures)
    stream = Stream(data, split_classes(CLASSES, 0, 2, seed=3), seed=3)
    session, everything = stream.session(1), stream.everything(1)
    assert set(session.train.labels.tolist()) == set(session.new_classes) == set(stream.sessions[1])
    assert set(session.holdout.labels.tolist()) == set(stream.known(1)) == set(everything.new_classes)
    assert set(everything.train.labels.tolist()) == set(stream.known(1))
    tests = set(data.test.ids)
    for seen in (session, everything):
        assert not tests & {*seen.train.ids, *seen.holdout.ids}
        assert not set(seen.train.ids) & set(seen.holdout.ids)
    assert set(stream.test(1).labels.tolist()) == set(stream.known(1))


class CountingBackbone(FrozenVisionTransformer):
    """Counts the images that pass its first layer."""

    seen = 0

    def embed(self, images: Tensor) -> Tensor:
        """Count."""
        self.seen += len(images)
        return super().embed(images)


def counting() -> CountingBackbone:
    """Build the small backbone with a counter."""
    backbone = small_backbone()
    backbone.__class__ = CountingBackbone
    assert isinstance(backbone, CountingBackbone)
    return backbone


@pytest.mark.parametrize("continue_from", [None, 1])
def test_features_are_computed_once_and_read_again(
    pictures: Path, tmp_path: Path, continue_from: int | None
) -> None:
    """A second run with a new cache reads the files, bit for bit; a damaged file is computed again."""
    data, folder = loaded(pictures), tmp_path / "features"
    first, second = counting(), counting()
    cache = CachedExtract(first, 2, continue_from)
    assert warm(cache, data.train, folder) == len(data.train.ids) == first.seen
    again = CachedExtract(second, 2, continue_from)
    assert warm(again, data.train, folder) == 0
    rows = list(range(len(data.train.ids)))
    one, two = cache.whole(data.train, rows), again.whole(data.train, rows)
    assert second.seen == 0
    assert torch.equal(one.features, two.features)
    assert (one.tokens is None) == (continue_from is None)
    if one.tokens is not None and two.tokens is not None:
        assert torch.equal(one.tokens, two.tokens)
    damaged = min(folder.iterdir())
    damaged.write_bytes(b"\0" * 4)
    assert 0 < warm(CachedExtract(second, 2, continue_from), data.train, folder) < len(data.train.ids)
    # Another depth, or another network, has other files.
    assert warm(CachedExtract(second, 1, continue_from), data.train, folder) == len(data.train.ids)
    assert warm(CachedExtract(small_backbone("other"), 2, continue_from), data.train, None) > 0
    assert CachedExtract(small_backbone("other"), 2, 1).key(["a"]) != CachedExtract(first, 2, 1).key(["a"])


@pytest.mark.parametrize("adapter_blocks", [1, 2])
def test_joint_training_learns_all_classes(pictures: Path, adapter_blocks: int) -> None:
    """Adapters in as many blocks as are read, and in fewer: unseen images of all classes are recognised."""
    data, backbone = loaded(pictures), small_backbone()
    stream = Stream(data, split_classes(CLASSES, 0, 2, seed=3), seed=3)
    settings = JointSettings(adapter_blocks=adapter_blocks, feature_blocks=2, epochs=4)
    model = train_jointly(backbone, stream.everything(2), settings, extract)
    base = extract(backbone, data.test, 2, backbone.depth - adapter_blocks)
    assert (model.predict(base) == data.test.labels).float().mean() > 0.8
    again = train_jointly(backbone, stream.everything(2), settings, extract)
    assert torch.equal(again.predict(base), model.predict(base))
    adapters = adapter_blocks * 16 * backbone.width * 2
    head = (2 * 2 * backbone.width) * (CLASSES + 2) + CLASSES
    assert model.nbytes() == 4 * (adapters + head)


def test_joint_training_goes_as_far_from_the_frozen_network_as_the_holdout_wants(pictures: Path) -> None:
    """Of several scales of its adapters it takes one that is best on held-out images, the first such one."""
    data, backbone = loaded(pictures), small_backbone()
    everything = Stream(data, split_classes(CLASSES, 0, 2, seed=3), seed=3).everything(2)
    # Labels drawn at random, because on the right ones every scale is right.
    labels = torch.randint(
        0, CLASSES, (len(everything.holdout.labels),), generator=torch.Generator().manual_seed(0)
    )
    held_out = everything.holdout.load(range(len(labels)))
    everything = replace(everything, holdout=TensorSamples(held_out, labels))
    held = extract(backbone, everything.holdout, 2, backbone.depth - 2)

    def trained(*scales: float) -> tuple[float, Tensor]:
        # A rate that spoils the network, so that the scales differ.
        settings = JointSettings(
            adapter_blocks=2, feature_blocks=2, epochs=4, learning_rate=0.3, scales=scales
        )
        model = train_jointly(backbone, everything, settings, extract)
        found = model.predict(held)
        return float((found == everything.holdout.labels).double().mean()), found

    alone = {scale: trained(scale) for scale in (1.0, 0.5, 1e-4)}
    assert len({accuracy for accuracy, _ in alone.values()}) > 1
    best = max(alone, key=lambda scale: alone[scale][0])
    assert torch.equal(trained(*alone)[1], alone[best][1])


def test_every_method_runs_and_is_measured(pictures: Path) -> None:
    """All methods over one stream: full matrices, sizes, times, progress; SGDS's overlap; the same again."""
    told: list[tuple[str, int, int]] = []
    samples: list[int] = []
    methods = ("ridge", "ncm", "finetune", "sgds", "exssnet", "joint")
    asked = question(*methods)
    asked = replace(asked, options={**asked.options, "exssnet": {"hidden": [16], "outputs": 4, "epochs": 2}})
    data, backbone = loaded(pictures), small_backbone()
    ended: list[MethodRun] = []
    listener = Listener(samples.append, lambda *what: told.append(what), ended.append)
    runs = compare(asked, data, backbone, listener=listener)
    assert [run.method for run in runs] == list(methods)
    assert ended == runs
    assert told == [(method, 1, session) for method in methods for session in range(3)]
    assert sum(samples) == CLASSES * 30
    for run in runs:
        assert [len(row) for row in run.matrix] == [1, 2, 3]
        assert len(run.session_seconds) == 3
        assert min(run.session_seconds) > 0
        assert run.peak_memory_bytes > 2**20
        assert run.bytes_per_class > 0
        assert 0 <= run.holdout_accuracy <= 1
        assert (run.overlap is not None) == (run.method == "sgds")
    by_name = {run.method: run.figures() for run in runs}
    assert by_name["ridge"]["a_t"] > 0.8
    assert by_name["joint"]["a_t"] > 0.8
    assert by_name["finetune"]["forgetting"] > by_name["ridge"]["forgetting"] + 0.2
    [sgds] = [run for run in runs if run.method == "sgds"]
    assert sgds.overlap is not None
    overlap = np.array(sgds.overlap)
    assert overlap.shape == (CLASSES, CLASSES)
    assert np.array_equal(overlap.diagonal(), np.ones(CLASSES))
    repeated = compare(question("ridge", "sgds"), data, backbone)
    assert [run.matrix for run in repeated] == [run.matrix for run in runs if run.method in ("ridge", "sgds")]


def test_forward_transfer_is_measured_where_it_is_asked_for(pictures: Path) -> None:
    """Each session learnt alone, its classes alone to choose from; joint training has no such thing."""
    told: list[int] = []
    listener = Listener(lambda _: None, lambda *what: told.append(what[2]))
    asked = question("ncm", "finetune", "joint", transfer=True)
    ncm, finetune, joint = compare(asked, loaded(pictures), small_backbone(), listener=listener)
    # A class's mean is the same whatever was learnt before it, so a session gains and loses nothing.
    assert ncm.figures()["fwt"] == 0.0
    assert finetune.forward_transfer is not None
    assert -1 <= finetune.forward_transfer <= 1
    assert joint.forward_transfer is None
    assert "fwt" not in joint.figures()
    assert told == [0, 1, 2] * 3
    console = Console(width=200, record=True)
    console.print(table("t", [ncm, joint]))
    lines = console.export_text().splitlines()
    assert "FWT" in next(line for line in lines if "A_T" in line)
    assert " - " in next(line for line in lines if "joint" in line)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"methods": ("magic",)}, "method 'magic' is not one of sgds"),
        ({"methods": ()}, "must not be empty"),
        ({"options": {"sgds": {"density": 2}}}, "options of method 'sgds': density"),
        ({"options": {"sgds": {"feature_blocks": 1}}}, "are the same for all methods"),
        ({"options": {"ncm": {}}}, "leave out"),
        ({"adapter_blocks": 4}, "1 to 3, the backbone's blocks"),
        ({"increment": 6}, "do not divide 6 classes"),
    ],
)
def test_a_wrong_question_is_refused(pictures: Path, changes: dict[str, object], message: str) -> None:
    """Before anything is computed."""
    backbone = counting()
    with pytest.raises(ValueError, match=message):
        compare(replace(question("sgds"), **changes), loaded(pictures), backbone)
    assert backbone.seen == 0


def test_the_peak_is_that_of_the_block() -> None:
    """64 MiB that are held for a moment are seen, though they are gone at the end."""
    with PeakMemory(torch.device("cpu")) as small:
        pass
    with PeakMemory(torch.device("cpu")) as memory:
        block = torch.ones(16 * 2**20)
        memory._stop.wait(0.2)
        del block
    assert memory.nbytes > small.nbytes + 32 * 2**20


def test_the_command_line(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """From a directory of images to table, JSON and plots; nothing in the record says where it was."""
    monkeypatch.setattr("cl_engine.backbones.load_backbone", lambda *_, **__: small_backbone())
    monkeypatch.setattr("cl_engine.bench.data.square", lambda image, _: _small(image))
    output = tmp_path / "out" / "figures.json"
    arguments = [
        *(str(pictures), "--methods", "ridge,sgds", "--seeds", "2", "--increment", "3"),
        *("--feature-blocks", "2", "--adapter-blocks", "2", "--features", str(tmp_path / "features")),
        *("--json", str(output), "--plots", str(tmp_path / "plots")),
        *(f"--set=sgds.{name}={value}" for name, value in SMALL.items()),
    ]
    with pytest.raises(SystemExit) as ended:
        cli.main("accrete bench", arguments)
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    assert "sgds, seed 1994: A_T" in shown
    assert "…" not in shown, "a column of the table is cut"
    assert "On samples held out of training," in shown
    content = json.loads(output.read_text())
    assert content["seeds"] == [1993, 1994]
    assert set(content["figures"]) == {"ridge", "sgds"}
    assert content["question"]["split"] == "B0-Inc3"
    assert content["question"]["options"]["sgds"]["units_per_session"] == 4
    assert content["command"].startswith("accrete bench pictures --methods ridge,sgds")
    assert str(tmp_path) not in output.read_text()
    assert sorted(p.name for p in (tmp_path / "plots").iterdir()) == ["accuracy.png", "mask-overlap-sgds.png"]


def _small(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image.resize((SIZE, SIZE)))).permute(2, 0, 1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere", "--methods", "magic"], "method 'magic' is not one of"),
        (["nowhere", "--set", "density=1"], "must be METHOD.NAME=VALUE"),
        (["nowhere", "--holdout", "0"], "holdout 0.0 must be above 0"),
    ],
)
def test_a_mistake_on_the_command_line_is_one_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Status 1, and what to do."""
    with pytest.raises(SystemExit) as ended:
        cli.main("accrete bench", arguments)
    assert ended.value.code == 1
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error


def test_values_of_options_are_yaml() -> None:
    """Numbers, words, lists."""
    parsed = cli.parse_options(["sgds.density=0.5", "sgds.inference=kwta", "exssnet.hidden=[8, 4]"])
    assert parsed == {"sgds": {"density": 0.5, "inference": "kwta"}, "exssnet": {"hidden": [8, 4]}}


def test_a_directory_of_texts_is_compared_like_one_of_images(tmp_path: Path) -> None:
    """The same table over a text encoder: files become token ids, every method reads them."""
    words = ("card", "my", "lost", "is")
    for label, word in enumerate(words):
        folder = tmp_path / "texts" / word
        folder.mkdir(parents=True)
        for number in range(20):
            said = " ".join([word] * (1 + number % 3) + [words[(label + number) % 4]])
            (folder / f"{number}.txt").write_text(said)
    encoder = make_encoder()
    data = loaded(tmp_path / "texts", encoder=encoder)
    assert data.class_names == tuple(sorted(words))
    rows = data.train.load([0, 1])
    assert (rows.dtype, tuple(rows.shape)) == (torch.int64, (2, encoder.max_tokens))
    runs = compare(question("ridge", "sgds", "finetune", "exssnet", "joint"), data, encoder)
    accuracies = {run.method: run.figures()["a_t"] for run in runs}
    assert accuracies.keys() == {"ridge", "sgds", "finetune", "exssnet", "joint"}
    assert min(accuracies["ridge"], accuracies["sgds"], accuracies["exssnet"], accuracies["joint"]) > 0.6


def test_images_and_texts_are_not_taken_for_each_other(pictures: Path) -> None:
    """A directory of images has nothing for a text encoder, and the message says what to change."""
    with pytest.raises(ValueError, match=r"0 directories with texts: .* read with a text encoder"):
        loaded(pictures, encoder=make_encoder())
