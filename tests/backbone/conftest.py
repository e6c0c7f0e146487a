import pytest
from sam_pairs import ours, transformers_sam


@pytest.fixture(scope="module")
def pair():
    """Transformers' small SAM and ours with the same weights."""
    model = transformers_sam()
    return model, ours(model)
