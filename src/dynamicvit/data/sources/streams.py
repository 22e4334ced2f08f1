"""Hugging Face data sets of Parquet files that are not on this disk, read file by file."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from timm.utils.misc import natural_key

from dynamicvit.data.decoding import one_line
from dynamicvit.data.sources.base import Source
from dynamicvit.data.sources.huggingface import (
    class_column,
    classes_of,
    image_column,
    split_column,
)
from dynamicvit.data.sources.remote import (
    fetched,
    is_remote,
    listed,
    noted,
    open_url,
    retried,
)
from dynamicvit.errors import InputError
from dynamicvit.utils.optional import need


class HuggingFaceStream(Source):
    """A split of a data set in Parquet, each file fetched when its first image is read.

    Labels are read at the start, without the images. A file is a shard: order and resuming are
    those of :class:`~dynamicvit.data.sources.shards.Shards`.

    Args:
        name: as the user wrote it.
        place: a name on the Hub, a folder; or URLs of Parquet files: one, several by braces, or a
            folder that can be listed.
        split: ``train`` by default; as for :class:`.HuggingFace` with ``:COLUMN``.
    """

    def __init__(self, name: str, place: str, split: str | None) -> None:
        self.name = name
        datasets: Any = need("datasets", "data")
        place, split, column = split_column(name, place, split)
        features = None
        if is_remote(place):
            if split is not None:
                raise InputError(f"{name}: Parquet files by URL have no splits; name the files")
            urls = _by_url(name, place)
        else:
            urls, features = _by_builder(datasets, name, place, split or "train")
        features = features or datasets.Features.from_arrow_schema(_footer(urls[0])[0])
        self._image = image_column(name, features, datasets.Image)
        label, self.class_problem = class_column(name, features, column, datasets)
        self.labeled = label is not None or self.class_problem is not None
        labels = noted(urls, f"labels {label}", lambda number: _labels(urls[number], label))
        self.block_names = tuple(urls)
        lengths = [len(each) for each in labels]
        self._starts = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
        self.blocks = np.repeat(np.arange(len(urls)), lengths)
        if label is not None:
            names = getattr(features[label], "names", None)
            self.classes, self.targets = classes_of([x for each in labels for x in each], names)

    def __len__(self) -> int:
        return int(self._starts[-1])

    def path(self, row: int) -> str:
        """The file, and the row in it."""
        url, position = self._place(row)
        return f"{url}#{position}"

    def read(self, row: int) -> bytes:
        """The bytes of the image."""
        url, position = self._place(row)
        rows = _rows(fetched(url, self._convert, self._image))
        if position >= len(rows):
            raise ValueError(f"the file holds {len(rows)} rows, not {position + 1} or more")
        image = rows[position].as_py()
        if image is None or image["bytes"] is None:
            raise ValueError("the row has no image")
        return image["bytes"]

    def _place(self, row: int) -> tuple[str, int]:
        number = int(np.searchsorted(self._starts, row, side="right")) - 1
        return self.block_names[number], row - int(self._starts[number])

    def _convert(self, parquet: Path, arrow: Path) -> None:
        """Write the images of a Parquet file so that each can be read by itself."""
        pyarrow: Any = need("pyarrow", "data")
        file = need("pyarrow.parquet", "data").ParquetFile(parquet)
        schema = pyarrow.schema([file.schema_arrow.field(self._image)])
        with pyarrow.ipc.new_file(str(arrow), schema) as writer:
            batches = file.iter_batches(64, columns=[self._image], use_threads=False)
            for batch in batches:
                writer.write(batch)


def _by_url(name: str, place: str) -> list[str]:
    if place.endswith(".parquet"):
        return need("webdataset.shardlists", "data").expand_urls(place)
    urls = sorted(listed(place, "*.parquet"), key=natural_key)
    if not urls:
        raise InputError(f"{name}: no list of files is there; name them, as .../{{0..9}}.parquet")
    return urls


def _by_builder(datasets: Any, name: str, place: str, split: str) -> tuple[list[str], Any]:
    """The Parquet files of a split, and the data set's features if they are known."""
    try:
        builder = datasets.load_dataset_builder(place)
    # Of any kind: the library wraps only some errors of broken folders and the network.
    except Exception as error:
        raise InputError(f"{name} can't be opened ({one_line(error)})") from error
    files = builder.config.data_files or {}
    if split not in files:
        raise InputError(f"{name}: no split {split!r}; splits are {', '.join(map(str, files))}")
    urls = [str(file) for file in files[split]]
    if not all(url.endswith(".parquet") for url in urls):
        raise InputError(f"{name} is not in Parquet files, which streams need; write hfds/{place}")
    return urls, builder.info.features


def _footer(url: str, label: str | None = None) -> tuple[Any, int, list[Any] | None]:
    """A Parquet file's schema, its number of rows, and a column of it."""
    parquet: Any = need("pyarrow.parquet", "data")

    def read(_: int) -> tuple[Any, int, list[Any] | None]:
        system, source = open_url(url)
        with system.open(source, "rb") as opened:
            file = parquet.ParquetFile(opened)
            column = None
            if label is not None:
                column = file.read(columns=[label], use_threads=False).column(0).to_pylist()
            return file.schema_arrow, file.metadata.num_rows, column

    return retried(url, read)


def _labels(url: str, label: str | None) -> list[Any]:
    _, count, column = _footer(url, label)
    return [None] * count if column is None else column


@lru_cache(maxsize=128)
def _rows(path: Path) -> Any:
    """The images in a file of the cache, mapped into memory."""
    pyarrow: Any = need("pyarrow", "data")
    with pyarrow.ipc.open_file(pyarrow.memory_map(str(path))) as reader:
        return reader.read_all().column(0)
