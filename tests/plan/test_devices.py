"""The table of cards: its figures agree with each other and with what is known, and a card is found as people write it."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fledge.autotune.gpu_paths import gpu_path
from fledge.errors import FledgeError
from fledge.plan.devices import Device, find_device, parse_table, read_devices

DEVICES = list(read_devices().values())
CARD = "card: {memory_mib: 1, bandwidth: 1, capability: [8, 0], power: 1, link: 1}"
ENTRY = f"X1: {{aliases: [one], {CARD}, peak: {{fp32: 1}}, source: a data sheet}}"


def table(*entries: str) -> str:
    """A table of these entries."""
    return "\n".join(["devices:", *(f"  {entry}" for entry in entries)])


def teraflops(name: str, precision: str) -> float:
    """The peak of a card in TFLOP/s."""
    return find_device(name)[0].peak(precision) / 1e12


def test_figures_that_are_often_told_wrongly_are_right() -> None:
    assert teraflops("A100", "fp32") == pytest.approx(19.5)  # 312 is that of bf16
    assert teraflops("A100", "tf32") == pytest.approx(156)
    assert teraflops("A100", "bf16") == pytest.approx(312)
    assert teraflops("RTX 3090", "fp32") == pytest.approx(35.6)
    assert teraflops("RTX 3090", "bf16") == pytest.approx(71)  # 142 sums in fp16
    assert teraflops("RTX 4090", "fp32") == pytest.approx(82.6)
    assert teraflops("RTX 4090", "fp16") == pytest.approx(165.2)
    assert teraflops("H100 SXM", "bf16") == pytest.approx(989)  # 1,979 counts sparse products
    assert not find_device("V100")[0].supports("bf16")
    assert find_device("A10")[0].memory == 23028 * 2**20  # of 24 GB, some hold the error correction


@pytest.mark.parametrize("device", DEVICES, ids=lambda device: device.name)
def test_precisions_follow_the_generation(device: Device) -> None:
    assert device.supports("fp32")
    assert device.supports("bf16") == device.supports("tf32") == (device.capability >= (8, 0))
    assert device.supports("fp16") == (device.capability >= (7, 0))
    assert device.supports(gpu_path(device.capability).precision)
    assert not device.supports("fp64")


@pytest.mark.parametrize("device", DEVICES, ids=lambda device: device.name)
def test_peaks_keep_the_ratios_of_the_hardware(device: Device) -> None:
    """tf32 is half of fp16 on every generation, bf16 equals fp16; GeForce cards reach twice their fp32, or on Turing four
    times."""
    if device.supports("bf16"):
        assert device.peak("bf16") == device.peak("fp16")
        assert device.peak("tf32") == pytest.approx(device.peak("fp16") / 2, rel=0.03)
    if device.name.startswith("RTX") and device.name[4].isdigit() and "Ada" not in device.name:
        ratio = 4 if device.capability < (8, 0) else 2
        assert device.peak("fp16") == pytest.approx(ratio * device.peak("fp32"), rel=0.01)


@pytest.mark.parametrize("device", DEVICES, ids=lambda device: device.name)
def test_units_and_prices_are_plausible(device: Device) -> None:
    assert 8 * 2**30 < device.memory < 200 * 2**30
    assert 2e11 < device.bandwidth < 1e13
    assert 16e9 <= device.link < device.bandwidth
    assert 50 < device.power <= 1000
    assert 5e12 < device.peak("fp32") < 2e14
    for price in device.hire:
        assert 0.05 <= price.low <= price.high < 20
        assert price.read >= "2025"
    for price in device.purchase:
        assert 200 <= price.low <= price.high <= 50_000


def test_every_name_and_alias_finds_its_card() -> None:
    for device in DEVICES:
        for spelling in (device.name, *device.aliases):
            assert find_device(spelling) == (device, 1)
            assert find_device(f"NVIDIA {spelling.lower()}") == (device, 1)


def test_a_short_name_means_the_smallest_and_slowest_variant() -> None:
    for short in ("V100", "A100", "A100 80GB", "H100"):
        chosen = find_device(short)[0]
        family = [device for device in DEVICES if device.name.startswith(short.split()[0] + " ")]
        if "80GB" in short:
            family = [device for device in family if "80GB" in device.name]
        assert len(family) > 1
        assert all(chosen.memory <= other.memory and chosen.peak("fp16") <= other.peak("fp16") for other in family)
        assert all(chosen.link <= other.link for other in family)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("Tesla T4", "T4"),
        ("NVIDIA GeForce RTX 4090 D", "RTX 4090 D"),
        ("4090D", "RTX 4090 D"),
        ("Tesla V100-SXM2-16GB", "V100 SXM2 16GB"),
        ("Tesla P100-PCIE-16GB", "P100 PCIe 16GB"),
        ("NVIDIA A100-SXM4-80GB", "A100 SXM4 80GB"),
        ("NVIDIA A100 80GB PCIe", "A100 PCIe 80GB"),
        ("NVIDIA A800-SXM4-80GB", "A800 SXM4 80GB"),
        ("NVIDIA H100 80GB HBM3", "H100 SXM"),
        ("NVIDIA RTX 6000 Ada Generation", "RTX 6000 Ada"),
        ("ｒｔｘ３０９０", "RTX 3090"),
    ],
)
def test_names_of_drivers_and_of_people_are_understood(text: str, name: str) -> None:
    assert find_device(text)[0].name == name


@given(st.sampled_from(DEVICES), st.integers(1, 4096), st.sampled_from("xX×*"), st.sampled_from(["", " "]), st.booleans())
@settings(max_examples=200, deadline=None)
def test_a_number_of_cards_stands_before_or_after_the_name(
    device: Device, count: int, times: str, blank: str, before: bool
) -> None:
    parts = (str(count), times, device.name) if before else (device.name, times, str(count))
    assert find_device(blank.join(parts)) == (device, count)


@given(st.text(max_size=30))
@settings(max_examples=300, deadline=None)
def test_any_text_is_a_card_or_an_error_about_the_option(text: str) -> None:
    try:
        device, count = find_device(text)
    except FledgeError as error:
        assert error.where == "--device"
        assert error.hint
    else:
        assert device in DEVICES and 1 <= count <= 4096


@pytest.mark.parametrize(
    ("text", "hint"), [("RTX 4900", "RTX 4090"), ("H1", "H100 PCIe or H100 SXM"), ("8xA1000", "A100 PCIe 40GB")]
)
def test_an_unknown_card_is_an_error_with_close_names(text: str, hint: str) -> None:
    with pytest.raises(FledgeError, match="no card") as caught:
        find_device(text)
    assert hint in (caught.value.hint or "")


def test_a_card_that_is_like_none_is_an_error_with_all_names() -> None:
    with pytest.raises(FledgeError) as caught:
        find_device("quantum")
    assert all(device.name in (caught.value.hint or "") for device in DEVICES)


@pytest.mark.parametrize("text", ["0xT4", "T4x0", "T4x4097", "99999999999999999999xT4"])
def test_a_senseless_number_of_cards_is_an_error(text: str) -> None:
    with pytest.raises(FledgeError, match="cards"):
        find_device(text)


def test_a_precision_without_products_is_an_error() -> None:
    device = find_device("T4")[0]
    with pytest.raises(FledgeError, match="T4 has no fast bf16 products") as caught:
        device.peak("bf16")
    assert caught.value.where == "runtime.precision" and "fp16" in (caught.value.hint or "")


def test_what_was_not_confirmed_is_told() -> None:
    assert find_device("A30")[0].caveat() == (
        "A30: not confirmed by a source: memory_mib, bandwidth, power, fp32, tf32, fp16, bf16"
    )
    assert find_device("T4")[0].caveat() is None


def test_a_table_is_read() -> None:
    assert list(parse_table(table(ENTRY)).devices) == ["X1"]


@pytest.mark.parametrize(
    ("entry", "told"),
    [
        (ENTRY.replace("source:", "origin:"), "origin"),
        (ENTRY.replace("power: 1", "watts: 1"), "watts"),
        (ENTRY.replace("fp32: 1", "fp32: 1, fp8: 2"), "fp8"),
        (ENTRY.replace("memory_mib: 1", "memory_mib: 0"), "memory_mib"),
        (ENTRY.replace("fp32: 1", "bf16: 1"), "fp32"),
        (ENTRY.replace("source:", "hire: {EUR: [1, 2, 2026]}, source:"), "EUR"),
        (ENTRY.replace("source:", "hire: {USD: [3, 2, 2026]}, source:"), "lowest price is above the highest"),
        (ENTRY.replace("source:", "unverified: [colour], source:"), "unverified"),
    ],
)
def test_a_table_with_a_mistake_is_refused(entry: str, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        parse_table(table(entry))


def test_a_name_of_two_cards_is_refused() -> None:
    with pytest.raises(ValueError, match="stands for X1 and for X2"):
        parse_table(table(ENTRY, ENTRY.replace("X1", "X2").replace("one", "X-1")))
