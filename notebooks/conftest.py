"""Which notebooks are slow, and which are long: `pytest -m "slow or long" notebooks`."""

import pytest

MARKS = {
    "1_first_adapter.ipynb": pytest.mark.slow,
    "2_what_quantisation_loses.ipynb": pytest.mark.slow,
    "3_finetune_a_language_model.ipynb": pytest.mark.long,
    "5_inside_an_update.ipynb": pytest.mark.long,
}


@pytest.hookimpl(tryfirst=True)  # before tests are chosen by their markers
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks them."""
    for item in items:
        if item.path.name in MARKS:
            item.add_marker(MARKS[item.path.name])
