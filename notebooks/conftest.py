"""Which notebooks take long: they run with `pytest -m slow notebooks`."""

import pytest

SLOW = {
    "1_first_adapter.ipynb",
    "2_what_quantisation_loses.ipynb",
    "3_finetune_a_language_model.ipynb",
    "5_inside_an_update.ipynb",
}


@pytest.hookimpl(tryfirst=True)  # before tests are chosen by their markers
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks slow notebooks."""
    for item in items:
        if item.path.name in SLOW:
            item.add_marker(pytest.mark.slow)
