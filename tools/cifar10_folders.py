"""Lay out CIFAR-10's training files as the folders that configs/sweeps/mim_cifar10.py reads.

python tools/cifar10_folders.py cifar10_files cifar10

cifar10_files/CLASS/0000.jpg to 4999.jpg -> links in cifar10/train (files 0 to 999 of each class),
cifar10/validation (4500 to 4999, for choosing settings) and cifar10/test (4000 to 4299).
"""

import sys
from pathlib import Path

PARTS = {"train": range(1000), "test": range(4000, 4300), "validation": range(4500, 5000)}


def main(source: Path, out: Path) -> None:
    for part, numbers in PARTS.items():
        for folder in sorted(path for path in source.iterdir() if path.is_dir()):
            (out / part / folder.name).mkdir(parents=True, exist_ok=True)
            for number in numbers:
                file = folder / f"{number:04}.jpg"
                link = out / part / folder.name / file.name
                if not link.exists():
                    link.symlink_to(file.resolve(strict=True))
        print(f"{part:<11} {10 * len(numbers):,} images in {out / part}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
