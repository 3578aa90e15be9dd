"""What only Mochi has: a time that runs the other way."""

import pytest

from tests.tiny_mochi import build_mochi, build_mochi_generator

pytestmark = pytest.mark.parity


def test_a_scheduler_of_the_usual_direction_is_refused():
    pipeline = build_mochi()
    pipeline.scheduler.register_to_config(invert_sigmas=False)
    with pytest.raises(ValueError, match="does not count its time the other way"):
        build_mochi_generator(pipeline=pipeline)
