"""Figures with as many digits as their interval supports."""

from __future__ import annotations

import pytest

from tqbench.core.quantity import size
from tqbench.core.record import Estimate
from tqbench.report.text import interval, number, plain


@pytest.mark.parametrize(
    ("estimate", "metric", "text"),
    [
        (Estimate(0.0123, -0.002, 0.026), "dppl", "+0.012 [−0.002, +0.026]"),
        (Estimate(5231.4, 4300, 6100), "dppl", "+5,231 [+4,300, +6,100]"),
        (Estimate(-0.5, -0.6, -0.4), "dppl", "−0.50 [−0.60, −0.40]"),
        (Estimate(0.00042, 0.00039, 0.00045), "kld", "0.000420 [0.000390, 0.000450]"),
        (Estimate(1.2e-9, 1e-9, 1.4e-9), "kld", "1.20e−09 [1.00e−09, 1.40e−09]"),
        (Estimate(0.982, 0.979, 0.985), "top1", "98.20 [97.90, 98.50] %"),
        (Estimate(3.2), "kld_max", "3.20"),
        (Estimate(0.0, 0.0, 0.0), "dppl", "0"),
    ],
)
def test_digits_follow_the_interval(estimate, metric, text):
    assert interval(estimate, metric) == text


def test_plain_text_has_one_line_and_no_control_characters():
    assert plain("a\nb\x1b[31m\u202ec\ud800") == "a b\ufffd[31m\ufffdc\ufffd"


def test_sizes_and_numbers():
    assert [size(0), size(1023), size(1536), size(3 * 2**30)] == ["0 B", "1023 B", "1.5 KiB", "3.0 GiB"]
    assert [number(0), number(0.0123456), number(18.8912345, 6), number(1234567)] == ["0", "0.0123", "18.8912", "1,234,567"]
