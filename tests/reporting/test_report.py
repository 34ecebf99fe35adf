"""What a reader of report.html and of the console table relies on."""

import io
import re
from html.parser import HTMLParser
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.figure import Figure
from rich.console import Console

from src.reporting import formats
from src.reporting.plots import two_histograms
from src.reporting.run import gallery
from src.reporting.run.report import ClientTable, ScoreRow, write_report
from src.reporting.run.summary import headline, summary_table
from src.storage.run_metrics import RunMetrics
from tests.reporting.runs import content_of, metrics_of

CLIENTS = 6
FIGURES = {
    "image_auroc": 0.96142,
    "image_ap": 0.97813,
    "image_f1_max": 0.92377,
    "pixel_auroc": 0.88124,
    "aupro": 0.74256,
    "aupro_0.05": 0.51234,
    "au_spro": {"0.01": 0.31298, "0.05": 0.51671, "0.3": 0.74256},
}
PIXEL = ("pixel_auroc", "aupro", "aupro_0.05", "au_spro")


def lower(figures, by):
    return {k: lower(v, by) if isinstance(v, dict) else v - by for k, v in figures.items()}


def run_content():
    """metrics.json of a plausible run: six clients, one object, masks, every baseline."""
    alone = [0.8912, 0.8544, 0.9021, 0.8211, 0.8874, 0.8905]
    return content_of(
        **{
            "config": {"seed": 42, "data.root": "mtd", "model.backbone": "tf_efficientnet_lite0"},
            "dataset": {
                "name": "mtd",
                "objects": ["magnetic tile"],
                "train_images": 762,
                "test_images": 582,
            },
            "centralized": lower(FIGURES, -0.0031),
            "federated": FIGURES,
            "local": {
                "mean": {"image_auroc": 0.87445, "image_ap": 0.93312},
                "worst": {"client": 3, "image_auroc": 0.8211},
                "test_images": "all 582 test images",
                "clients": [
                    {
                        "client": i,
                        "images": 127,
                        "patches": 130048,
                        "bank": 1300,
                        "sent": 7800,
                        "radius": 1.5 + i / 10,
                        "image_auroc": auroc,
                    }
                    for i, auroc in enumerate(alone)
                ],
            },
            "bank": {
                "size": 7800,
                "dim": 152,
                "dtype": "float32",
                "bytes": 4742400,
                "radius_bound": 3.41234,
                "radius": 2.98765,
            },
            "traffic": {
                "upload_bytes": [790400] * CLIENTS,
                "broadcast_bytes": 4742400,
                "stages": [],
            },
            "seconds": {
                "features": 41.2,
                "coreset": 6.31,
                "merge": 0.42,
                "evaluate": 18.4,
                "local": 2.0,
                "total": 68.9,
            },
            "refused": [],
            "threshold": 3.0,
            "privacy": {"mechanism": "none", "guarantee": ""},
            "versions": {"fedpatchcore": "0.1.0", "torch": "2.9.0"},
            "seed": 42,
        }
    )


def run_metrics(**changes):
    return RunMetrics.model_validate(run_content() | changes)


def run_scores(objects=("magnetic tile",), normal=40, anomalous=70, baselines=True):
    rng = np.random.default_rng(0)
    rows = []
    for name in objects:
        for i in range(normal + anomalous):
            defect = "good" if i < normal else ("blowhole", "crack", "fray")[i % 3]
            score = 2.4 + (defect != "good") * rng.gamma(3, 0.5) + 0.3 * rng.standard_normal()
            other = (score + 0.25 * rng.standard_normal(CLIENTS + 1)).tolist()
            rows.append(
                ScoreRow(
                    object=name,
                    key=f"{name}/test/{defect}/{i:04}.png",
                    label=int(defect != "good"),
                    defect=defect,
                    client=None,
                    federated=float(score),
                    centralized=other[0] if baselines else None,
                    local=other[1:] if baselines else None,
                )
            )
    return rows


def load_image(row):
    rng = np.random.default_rng(len(row.key))
    shade = 110 + 25 * np.sin(np.arange(320) / 50) + rng.normal(0, 6, (256, 320))
    image = np.repeat(shade[..., None], 3, axis=2)
    if row.label:
        image[100:120, 150:190] -= 60
    return image.clip(0, 255).astype(np.uint8)


def load_map(row):
    y, x = np.mgrid[:256, :320]
    peak = np.exp(-((x - 170) ** 2 + (y - 110) ** 2) / 800) * row.label
    return (1.5 + 0.3 * np.sin(x / 40) + peak * (row.federated - 1.5)).astype(np.float32)


def load_mask(row):
    mask = np.zeros((256, 320), bool)
    mask[100:120, 150:190] = row.label
    return mask if row.label else None


SOURCE = SimpleNamespace(image=load_image, map=load_map, mask=load_mask)
COUNTS = [[127 if i == j else 0 for j in range(CLIENTS)] for i in range(CLIENTS)]
TABLE = ClientTable([f"exp{i}" for i in range(1, 7)], COUNTS, by="exposure")


def render(path, metrics, scores, clients=TABLE):
    write_report(path, metrics, scores, clients, SOURCE)
    return path.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    return render(tmp_path_factory.mktemp("run") / "report.html", run_metrics(), run_scores())


class Reader(HTMLParser):
    """Tags with attributes, and the text that a person would see."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.words, self.open = [], [], []
        self.feed(page)
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, f"</{tag}> closes another tag"

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("style", "script"):
            self.words.append(data)


def row_of(page, name):
    """The cells of the first table row with this head."""
    row = re.search(rf'<tr[^>]*><th scope="row">{name}</th>(.*?)</tr>', page, re.S)
    return re.findall(r"<td>(.*?)</td>", row[1], re.S) if row else None


def test_page_is_well_formed_and_loads_nothing(page):
    reader = Reader(page)
    assert reader.open == []
    assert not re.search(r"https?://|@import|url\(", page)
    assert not {"script", "link", "iframe", "object"} & {tag for tag, _ in reader.tags}
    sources = [attrs["src"] for _, attrs in reader.tags if "src" in attrs]
    assert sources
    assert all(source.startswith("data:image/") for source in sources)


def test_every_picture_and_chart_has_words_for_it(page):
    for tag, attrs in Reader(page).tags:
        if tag == "img":
            assert attrs["alt"]


def test_table_holds_the_metrics_to_three_decimals(page):
    assert row_of(page, "federated") == ["0.961", "0.978", "0.924", "0.881", "0.743", "0.517"]
    assert row_of(page, "centralized") == ["0.965", "0.981", "0.927", "0.884", "0.746", "0.520"]
    assert row_of(page, "local mean") == ["0.874", "0.933", *["–"] * 4]
    assert row_of(page, "local worst") == ["0.821", *["–"] * 5]
    assert row_of(page, "federated − centralized") == ["−0.003"] * 6


def test_headline_names_every_bank_and_the_budget_of_a_private_one():
    assert headline(run_metrics()) == (
        "Image AUROC: local mean 0.874, local worst 0.821, federated 0.961, centralized 0.965"
    )
    privacy = {
        "mechanism": "dp_gaussian",
        "guarantee": "(4, 1e-5)",
        "unit": "image",
        "epsilon": 4.0,
    }
    assert "federated with ε = 4 for one image: local" in headline(run_metrics(privacy=privacy))
    assert headline(metrics_of()).startswith("There is no image AUROC")


def cells_of(page, name):
    """The cells after the first of the first table row with this head."""
    row = re.search(rf'<tr[^>]*><th scope="row">{name}</th>(.*?)</tr>', page, re.S)
    return re.findall(r"<td[^>]*>(.*?)</td>", row[1], re.S) if row else None


def test_upload_is_set_against_sending_every_patch(page):
    # 6 * 130,048 patches * 152 dimensions * 4 bytes = 474.4 MB; 6 * 790,400 bytes = 4.7 MB
    spaced = page.replace(formats.NARROW_SPACE, " ")
    assert cells_of(spaced, "upload, all clients") == ["4.7 MB"]
    assert cells_of(spaced, "every patch in float32") == ["474.4 MB, 100 times the upload"]


def test_covering_radius_of_several_objects_is_the_largest(tmp_path, page):
    assert cells_of(page, "covering radius, guaranteed") == ["3.412"]
    assert cells_of(page, "covering radius, measured") == ["2.988"]
    radii = {"pipe": (2.0, 1.5), "clip": (5.5, None)}
    bank = run_content()["bank"]
    objects = {
        name: {"federated": FIGURES, "bank": bank | {"radius_bound": bound, "radius": radius}}
        for name, (bound, radius) in radii.items()
    }
    scores = run_scores(objects=("pipe", "clip"))
    page = render(tmp_path / "r.html", run_metrics(objects=objects), scores)
    assert cells_of(page, "covering radius, guaranteed") == ["5.500"]
    assert cells_of(page, "covering radius, measured") is None  # one object's radius is unknown


def test_exact_rows_are_counted(tmp_path, page):
    name = "rows known to be the centralized ones"
    assert cells_of(page, name) is None
    metrics = run_metrics(bank=run_content()["bank"] | {"exact": 250})
    assert cells_of(render(tmp_path / "r.html", metrics, run_scores()), name) == ["250"]


def test_threshold_is_counted_out(page):
    scores = run_scores()
    found = sum(row.federated >= 3.0 for row in scores if row.label)
    flagged = sum(row.federated >= 3.0 for row in scores if not row.label)
    assert cells_of(page, "magnetic tile") == ["3.000", f"{found} of 70", f"{flagged} of 40"]


def test_page_stays_under_two_megabytes_with_noisy_images(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (750, 1000, 3), np.uint8)
    path = tmp_path / "report.html"
    source = SimpleNamespace(image=lambda _: noise, map=load_map, mask=lambda _: None)
    write_report(path, run_metrics(), run_scores(), TABLE, source)
    assert path.stat().st_size < 2_000_000


@pytest.mark.parametrize("evil", ["<script>alert('x')</script>", "$x_{\\$"])
def test_hostile_names_are_text_not_markup(tmp_path, evil):
    metrics = run_metrics(
        dataset=run_content()["dataset"] | {"name": evil, "objects": [evil, "b"]},
        refused=[{"client": evil, "reason": f'bank holds NaN: "{evil}"'}],
        objects={evil: {"federated": FIGURES}, "b": {"federated": FIGURES}},
        config={evil: evil},
    )
    scores = run_scores(objects=(evil, 'b" onload="x'), normal=5, anomalous=5)
    clients = ClientTable([evil] * 6, COUNTS, clients=[evil] * 6, by=evil)
    reader = Reader(render(tmp_path / "r.html", metrics, scores, clients))
    assert "script" not in {tag for tag, _ in reader.tags}
    assert not any(name.startswith("on") for _, attrs in reader.tags for name in attrs)
    assert reader.text.count(evil) > 10


def test_refused_clients_come_before_the_headline(tmp_path):
    metrics = run_metrics(refused=[{"client": 4, "reason": "did not answer within 60 s"}])
    text = Reader(render(tmp_path / "r.html", metrics, run_scores())).text
    assert "1 client left out" in text
    assert text.index("did not answer within 60 s") < text.index("federated 0.961")


def federated_alone():
    return metrics_of(federated={k: v for k, v in FIGURES.items() if k not in PIXEL})


@pytest.mark.parametrize("metrics", [federated_alone, metrics_of])
@pytest.mark.parametrize("images", ["both classes", "normal only", "none"])
def test_what_is_missing_leaves_no_trace(tmp_path, metrics, images):
    scores = {
        "both classes": run_scores(baselines=False),
        "normal only": run_scores(anomalous=0, baselines=False),
        "none": [],
    }[images]
    page = render(tmp_path / "r.html", metrics(), scores, ClientTable([], []))
    assert not re.search(r"\b(None|nan|undefined|null)\b", Reader(page).text)
    assert not re.search(r"</h3>\s*(</section>|<h)|<tbody>\s*</tbody>", page)
    assert ("ROC curves" in page) == (images == "both classes")


def test_without_baselines_and_masks_only_the_federated_image_columns_stay(tmp_path):
    page = render(tmp_path / "r.html", federated_alone(), run_scores(baselines=False))
    text = Reader(page).text
    assert row_of(page, "federated") == ["0.961", "0.978", "0.924"]
    for word in ("federated − centralized", "local mean", "AUPRO", "alone", "threshold"):
        assert word not in text


def test_several_objects_have_a_table_and_charts_of_their_own(tmp_path):
    objects = {
        name: {
            "federated": lower(FIGURES, by),
            "centralized": FIGURES,
            "local": {"mean": {"image_auroc": 0.8}},
        }
        for name, by in (("pipe", 0.0), ("clip", 0.1))
    }
    metrics = run_metrics(objects=objects, threshold={"clip": 2.9, "pipe": 3.1})
    page = render(tmp_path / "r.html", metrics, run_scores(objects=("pipe", "clip")))
    cells = row_of(page, "clip")
    assert cells == ["0.800", "0.861", "0.961", "−0.100", "0.781", "0.643", "0.417"]
    assert page.index(">clip</th>") < page.index(">pipe</th>")
    assert page.count("ROC curves of") == page.count("Histogram of") == 2
    assert "mean of 2 objects" in Reader(page).text


def shown(page, heading):
    """Keys of the gallery's images under a heading, in order."""
    part = page.split(f"<h3>{heading}</h3>")[1].split("</ul>")[0]
    return re.findall(r"<br>([^<]+\.png)</figcaption>", part)


def test_gallery_starts_with_the_worst(page):
    rows = sorted(run_scores(), key=lambda row: row.federated)
    normal = [row.key for row in rows if row.label == 0]
    anomalous = [row.key for row in rows if row.label == 1]
    assert shown(page, "Defects with the lowest scores") == anomalous[:6]
    assert shown(page, "Normal images with the highest scores") == normal[::-1][:6]
    assert shown(page, "Defects with the highest scores") == anomalous[::-1][:6]


def row(score, label=1, name="a"):
    return ScoreRow(name, f"{name}{score}", label, "crack" if label else "good", None, score)


def test_few_defects_are_shown_once_each():
    rows = [row(s) for s in (3.0, 1.0, 2.0)]
    choice = gallery.choose(rows, {})
    assert [r.federated for r in choice["misses"]] == [1.0, 2.0]
    assert [r.federated for r in choice["hits"]] == [3.0]


def test_objects_of_different_scale_are_ranked_by_their_own_threshold():
    rows = [row(0.9, name="small"), row(8.0, name="large"), row(20.0, name="large")]
    choice = gallery.choose(rows, {"small": 0.5, "large": 10.0})
    assert choice["misses"][0].federated == 8.0  # 0.8 of its threshold, 0.9 is 1.8 of its own


def test_heat_maps_of_one_object_share_one_scale(monkeypatch):
    """A map of a tenth of the height looks a tenth as hot (FIELD.md: never per image)."""
    seen = []

    def spy(image, heat, low, high, outline=None):
        seen.append((low, high))
        return image

    rows = [row(1.0), row(2.0), row(10.0)]
    monkeypatch.setattr(gallery, "overlay", spy)
    gallery.pictures(gallery.choose(rows, {}), {}, SOURCE)
    assert len(seen) == 3
    assert len(set(seen)) == 1


def bars_of(up, down, extra=None):
    """Left edges, right edges and heights of the bars of two histograms."""
    axes = Figure().subplots()
    two_histograms(axes, ("up", np.array(up)), ("down", np.array(down)), extra)
    bars = [(bar.get_x(), bar.get_x() + bar.get_width(), bar.get_height()) for bar in axes.patches]
    return np.array(bars).T


@given(
    st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=20),
    st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=20),
    st.none() | st.floats(-1e6, 1e6),
)
def test_histograms_hold_every_value_once_and_span_the_threshold(up, down, threshold):
    left, right, height = bars_of(up, down, threshold)
    assert height[height > 0].sum() == pytest.approx(1)
    assert height[height < 0].sum() == pytest.approx(-1)
    rounding = 2 * np.spacing(np.abs([left, right]).max())  # of a bar's left edge plus its width
    assert threshold is None or left.min() <= threshold <= right.max() + rounding


@given(st.floats(0, 1, exclude_min=True))
def test_difference_never_shows_a_signed_zero(value):
    for text in (formats.difference(value), formats.difference(-value)):
        assert text == "0.000" or (text[0] in "+−" and text[1:] != "0.000")


@pytest.mark.parametrize(
    ("size", "text"), [(512, "512 B"), (790_400, "790.4 kB"), (999_960, "1.0 MB"), (5e9, "5.0 GB")]
)
def test_bytes_are_in_decimal_units(size, text):
    assert formats.byte_size(size).replace(formats.NARROW_SPACE, " ") == text


def printed(metrics):
    console = Console(file=io.StringIO(), width=80)
    console.print(summary_table(metrics))
    return console.file.getvalue()


def test_console_table_fits_80_columns_with_rows_in_order():
    lines = printed(run_metrics()).splitlines()
    assert max(map(len, lines)) <= 80
    rows = [line.split() for line in lines if re.search(r" 0\.\d{3}", line)]
    assert [cells[:-6] for cells in rows] == [
        ["local", "mean"],
        ["local", "worst"],
        ["federated"],
        ["centralized"],
    ]
    assert rows[2][1:] == ["0.961", "0.978", "0.924", "0.881", "0.743", "0.517"]
    heads = ["Image", "AUROC", "AP", "F1", "Pixel", "AUROC", "AUPRO", "AU-sPRO@0.05"]
    assert next(line.split() for line in lines if "AUPRO" in line) == heads


def test_console_table_leaves_out_what_is_missing():
    alone = printed(federated_alone())
    assert "0.961" in alone
    assert not re.search("local|centralized|AUPRO|–", alone)
