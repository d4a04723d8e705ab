"""Small image sets on disk, laid out as the real ones are."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def encoded(image: np.ndarray, form: str) -> io.BytesIO:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, form)
    buffer.seek(0)
    return buffer


def write_tfds(data_dir: Path) -> None:
    """Writes a small cifar10 and a small imagenet2012 as array_record."""
    tfds = pytest.importorskip("tensorflow_datasets")

    def prepare(name: str, version: str, classes: int, counts: dict[str, int]) -> None:
        class Tiny(tfds.core.GeneratorBasedBuilder, skip_registration=True):
            VERSION = tfds.core.Version(version)

            def _info(self):
                image = tfds.features.Image(shape=(None, None, 3))
                label = tfds.features.ClassLabel(num_classes=classes)
                features = tfds.features.FeaturesDict({"image": image, "label": label})
                return tfds.core.DatasetInfo(builder=self, features=features)

            def _split_generators(self, dl_manager):
                return {s: self._generate_examples(n) for s, n in counts.items()}

            def _generate_examples(self, count):
                for i in range(count):
                    tall = 32 if name == "cifar10" else 40 + i
                    image = encoded(noise(tall, 32, 3, seed=i), "PNG")
                    yield i, {"image": image, "label": i % classes}

        Tiny.name, Tiny.pkg_dir_path = name, None
        builder = Tiny(data_dir=str(data_dir), file_format="array_record")
        builder.download_and_prepare()

    prepare("cifar10", "3.0.2", 10, {"train": 40, "test": 12})
    prepare("imagenet2012", "5.1.0", 1000, {"train": 20, "validation": 9})


def write_digits(path: Path) -> str:
    """Writes 200 and 50 of scikit-learn's digits; returns the name of the set."""
    digits = pytest.importorskip("sklearn.datasets").load_digits()
    images = (15 * digits.images).astype(np.uint8)[..., None]
    np.savez(
        path,
        x_train=images[:200],
        y_train=digits.target[:200],
        x_test=images[200:250],
        y_test=digits.target[200:250],
    )
    return f"npz:{path}"


def write_folder(root: Path) -> None:
    """Writes train and val folders of two classes, 12 and 4 images."""
    for split, count in (("train", 6), ("val", 2)):
        for number, name in enumerate(("cat", "dog")):
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                image = noise(12, 12, 3, seed=100 * number + i)
                path = root / split / name / f"{i}.png"
                path.write_bytes(encoded(image, "PNG").getvalue())


def write_tiny_imagenet(root: Path, each: int, held: int) -> None:
    """Writes two classes in Tiny-ImageNet's layout; the held out ones alternate."""
    for number, name in enumerate(("n01", "n02")):
        images = root / "train" / name / "images"
        images.mkdir(parents=True)
        (images.parent / f"{name}_boxes.txt").write_text("0\t0\t1\t1\n")
        for i in range(each):
            data = encoded(noise(8, 8, 3, seed=10 * number + i), "JPEG").getvalue()
            (images / f"{name}_{i}.JPEG").write_bytes(data)
    images = root / "val" / "images"
    images.mkdir(parents=True)
    (root / "test" / "images").mkdir(parents=True)
    lines = []
    for i in range(held):
        data = encoded(noise(8, 8, 3, seed=50 + i), "JPEG").getvalue()
        (images / f"val_{i}.JPEG").write_bytes(data)
        (root / "test" / "images" / f"test_{i}.JPEG").write_bytes(data)
        lines.append(f"val_{i}.JPEG\tn0{2 - i % 2}\t0\t0\t7\t7\n")
    (root / "val" / "val_annotations.txt").write_text("".join(lines))
