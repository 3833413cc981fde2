"""The page as a file: nothing from elsewhere, nothing obeyed, the same bytes, few of them."""

import re

import numpy as np
import pytest
from helpers.pages import Page, digest
from helpers.report_runs import drawn_run, with_many

import gradscore as gs
from gradscore.accuracy import percent, tenths
from gradscore.errors import RunError
from gradscore.reporting.markup import command, escaped, note, table, tag
from gradscore.reporting.page import make_page, resource
from gradscore.reporting.scales import Axis, stairs
from gradscore.reporting.words import short_label
from gradscore.run import RunStore, SetInfo

HOSTILE = (
    "<img src=x onerror=alert(1)>\"'</script><script>alert(2)</script>{{program}}\u202e\x1b[31m"
)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return drawn_run(tmp_path_factory.mktemp("report") / "run")


@pytest.fixture(scope="module")
def page(run):
    return Page(gs.report(run, run.parent / "report.html"))


def test_equal_runs_give_equal_bytes(page, tmp_path):
    run = drawn_run(tmp_path / "run")
    again = gs.report(run, tmp_path / "again.html").read_bytes()
    # Only the run's own place, in the commands, is another.
    assert re.sub(r"/\S*/run", "", again.decode()) == re.sub(r"/\S*/run", "", page.source)


def test_the_policy_allows_the_pages_own_style_and_program_alone(page):
    assert page.policy == {
        "default-src": ["'none'"],
        "img-src": ["data:"],
        "style-src": [digest(page.inline("style"))],
        "script-src": [digest(page.inline("script"))],
        "base-uri": ["'none'"],
        "form-action": ["'none'"],
    }
    assert page.inline("script") == resource("report.js")
    assert len(resource("report.js").splitlines()) <= 300


def test_nothing_is_loaded_or_run_from_elsewhere(page):
    assert not re.search(r"(https?:)?//[a-z0-9]|url\((?!#)|@import|javascript:", page.source)
    for element in page.root.all():
        for name, value in element.attributes.items():
            assert name != "style"
            assert not name.startswith("on")
            if name in ("src", "href"):
                assert value.startswith(("#", "data:"))


def test_texts_of_a_run_are_inert(tmp_path):
    def named(name, arrays):
        arrays["path"] = np.array([f"{k}{HOSTILE}" for k in arrays["index"]], dtype=object)

    run = drawn_run(tmp_path / "run", change=named, sources={"digits": HOSTILE})
    with RunStore.open_for_writing(run) as store:
        store.info.model = store.info.notice = store.info.weights = HOSTILE
        store.info.class_names = (HOSTILE, *"abcd")
        store.save()
    page = Page(gs.report(run, tmp_path / "report.html"))
    plain = Page(gs.report(drawn_run(tmp_path / "plain"), tmp_path / "plain.html"))
    for kind in ("script", "style", "meta", "link"):
        assert len(page.root.all(kind)) == len(plain.root.all(kind))
    assert not page.root.all("img")
    assert "<img src=x onerror=alert(1)>" in page.root.one("h1").text
    for character in ("\u202e", "\x1b"):
        assert character not in page.source
    assert page.policy["script-src"] == [digest(resource("report.js"))]


def test_the_page_is_small_whatever_the_number_of_images(tmp_path):
    run = with_many(drawn_run(tmp_path / "run"), rows=100_000)
    page = Page(gs.report(run, tmp_path / "report.html"))
    assert page.data["sets"][3]["n"] == 100_000
    assert len(page.content) < 200_000


def test_a_page_shows_so_many_sets_and_names_the_others(tmp_path):
    run = drawn_run(tmp_path / "run", keep=["digits"])
    for k in range(45):
        with_many(run, name=f"set{k}", rows=200)
    page = Page(gs.report(run, tmp_path / "report.html", images=False))
    assert len(page.data["sets"]) == 40
    assert (
        "set39 is not shown: one page shows 40 sets; ask for others by their names" in page.source
    )
    assert len(page.content) < 1_000_000


def test_data_cannot_end_the_element_that_holds_it(tmp_path):
    hostile = {"name": "</script><script>alert(1)</script><!--"}
    page = tmp_path / "page.html"
    page.write_bytes(make_page("t", tag("p"), [], tag("p"), hostile))
    assert Page(page).data == hostile
    assert len(Page(page).root.all("script")) == 2


def test_nothing_is_written_where_the_report_fails(run, tmp_path):
    place = tmp_path / "report.html"
    place.write_text("old")
    with pytest.raises(RunError, match="No run in"):
        gs.report(tmp_path, place)
    assert place.read_text() == "old"
    assert list(tmp_path.iterdir()) == [place]


def test_every_figure_says_what_it_shows(page):
    for figure in page.root.all("svg", role="img"):
        assert figure.children[0].name == "title"
        assert len(figure.children[0].text) > 10
    for section in ("scores", "curves", "factors"):
        assert page.section(section).all("details"), f"{section} has no table behind its figure"
    for one in page.root.all("table"):
        assert one.all("caption")[0].text
        assert {head.attributes["scope"] for head in one.all("th")} <= {"col", "row"}
    for image in page.root.all("img"):
        assert image.attributes["alt"]
    (slider,) = page.root.all("input")
    assert [label.attributes["for"] for label in page.root.all("label")] == [
        slider.attributes["id"]
    ]


def test_addresses_within_the_page_are_there_once(page):
    names = [e.attributes["id"] for e in page.root.all() if "id" in e.attributes]
    assert len(names) == len(set(names))
    used = [link.attributes["href"][1:] for link in page.root.all("a")]
    used += [e.attributes["aria-labelledby"] for e in page.root.all("section")]
    assert set(used) <= set(names)


def test_markup_is_escaped_unless_it_is_our_own():
    assert (
        tag("p", "<b>", tag("i", "x"), title='"&')
        == '<p title="&quot;&amp;">&lt;b&gt;<i>x</i></p>'
    )
    assert escaped("x" * 10_000) == f"{'x' * 300} ... {'x' * 300}"
    assert "&lt;td&gt;" in table("t", ["a", "b"], [["x", "<td>"]])


@pytest.mark.parametrize(
    ("values", "low", "high"), [([], 0, 1), ([3], 1.5, 4.5), ([0, 0], -0.5, 0.5), ([1, 5], 1, 5)]
)
def test_an_axis_is_never_empty(values, low, high):
    axis = Axis.around(values)
    assert (axis.low, axis.high) == (low, high)
    assert axis.share(low) == 0
    assert axis.share(high) == 1
    assert axis.ticks()


def test_shares_in_tenths_round_halves_up_and_read_alike():
    assert [percent(tenths(k, 8)) for k in range(9)] == [
        *("0.0%", "12.5%", "25.0%", "37.5%", "50.0%", "62.5%", "75.0%", "87.5%", "100.0%")
    ]
    assert [tenths(1, 2000), tenths(1, 2001)] == [1, 0]


def test_stairs_close_at_the_bottom():
    assert stairs([0.5, 1.0], 10, 4) == "M0 4V2H5V0H10V4Z"


def test_a_long_name_keeps_its_end_where_names_that_begin_alike_differ():
    one = SetInfo("ood_set_number_07_of_many", "ood", "", "a" * 64, 1)
    assert short_label(one, 22) == "ood_set…ber_07_of_many (OOD)"
    assert len(short_label(one, 22)) == 22 + len(" (OOD)")
    assert short_label(one, 25) == "ood_set_number_07_of_many (OOD)"


def test_what_a_message_has_between_backticks_is_a_command():
    shown = note("Choose: `gradscore choose --run <r>`, then go on.")
    assert shown == (
        '<p class="note">Choose: <code>gradscore choose <span>--run</span> &lt;r&gt;</code>, '
        "then go on.</p>"
    )
    assert note("one ` alone") == '<p class="note">one ` alone</p>'
    assert note(tag("b", "`x`")) == '<p class="note"><b>`x`</b></p>'


def test_a_command_breaks_between_its_words_alone():
    assert command("gradscore choose --run a<b") == (
        "<code>gradscore choose <span>--run</span> a&lt;b</code>"
    )
