import pytest

from dlrm_dist.errors import UserError
from dlrm_dist.planning.cluster import PLANS, Constants, cluster_of_device, known_clusters, load_cluster
from dlrm_dist.planning.planner import _Links, _topology

GOOD = (PLANS / "clusters" / "h100.toml").read_text()


def test_the_clusters_that_are_promised_are_there():
    assert {"a100", "h100", "h200", "b200", "l4", "cpu"} <= set(known_clusters())


@pytest.mark.parametrize("name", known_clusters())
def test_each_file_loads_in_each_of_its_sizes(name):
    cluster = load_cluster(name)
    assert cluster.name == name
    assert cluster.sizes
    for size in cluster.sizes:
        assert load_cluster(f"{name}:{size}").size == size
    for field in Constants.model_fields:
        constant = getattr(cluster.constants, field)
        assert "todo" not in constant.source.lower()
        assert Constants.model_fields[field].description


@pytest.mark.parametrize(
    ("name", "gpu"),
    [
        ("a100", "NVIDIA A100-SXM4-80GB"),
        ("h100", "NVIDIA H100 80GB HBM3"),
        ("h200", "NVIDIA H200"),
        ("b200", "NVIDIA B200"),
        ("l4", "NVIDIA L4"),
    ],
)
def test_a_gpu_is_known_by_its_name(name, gpu):
    assert cluster_of_device("cuda", gpu).name == name


@pytest.mark.parametrize("gpu", ["Tesla V100-SXM2-32GB", "NVIDIA L40S", "NVIDIA GH200 480GB"])
def test_an_unknown_gpu_is_not_taken_for_another(gpu):
    assert cluster_of_device("cuda", gpu) is None


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("h10", "did you mean h100?"),
        ("nothing-like-it", "known are a100"),
        ("h100:8", "hosts x devices"),
        ("h100:0x8", "hosts x devices"),
        ("h100:1x16", "has 8 devices, not 16"),
        ("missing.toml", "cannot be read"),
    ],
)
def test_what_cannot_be_loaded(text, said):
    with pytest.raises(UserError, match=said):
        load_cluster(text)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("[constants]", "[constants", "not valid TOML"),
        ('kind = "published"', 'kind = "guessed"', "measured.*published.*assumed"),
        ("hbm_gb_s", "hbm_gb", "Field required|Extra inputs"),
        ("value = 3350", 'value = "fast"', "hbm_gb_s"),
        ("ddr_gb_s = { value = 75", "ddr_gb_s = { value = 0", "ddr_gb_s must be above 0"),
        ('source = "TorchRec\'s default"', 'source = ""', "update_multiplier.source"),
    ],
)
def test_a_bad_file_is_refused_in_one_line(tmp_path, old, new, said):
    assert old in GOOD
    path = tmp_path / "mine.toml"
    path.write_text(GOOD.replace(old, new))
    with pytest.raises(UserError, match=said) as error:
        load_cluster(str(path))
    assert "\n" not in str(error.value)
    assert str(path) in str(error.value)


def test_an_own_file_in_another_size(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(GOOD)
    assert load_cluster(f"{path}:4x2").world_size == 8


def test_torchrec_plans_with_the_files_numbers_and_none_of_its_defaults():
    cluster = load_cluster("h100:2x4")
    topology = _topology(cluster)
    value = cluster.value
    assert (topology.world_size, topology.local_world_size, topology.compute_device) == (8, 4, "cuda")
    assert topology.devices[0].storage.hbm == int(78 * (1 - 0.15) * 2**30)
    assert topology.devices[0].storage.ddr == int(238 * (1 - 0.15) * 2**30)
    assert topology.devices[0].storage.ssd == 0
    assert topology.hbm_mem_bw == pytest.approx(3350e6 * value("lookup_efficiency"))
    assert topology.ddr_mem_bw == pytest.approx(75e6 * value("lookup_efficiency"))
    assert topology.hbm_to_ddr_mem_bw == pytest.approx(64e6)
    assert topology.bwd_compute_multiplier == value("update_multiplier")
    assert topology.intra_host_bw == pytest.approx(450e6 * 0.75)
    assert topology.inter_host_bw == pytest.approx(50e6 * 0.75)


def test_bandwidths_of_collectives():
    """By hand: 2 hosts of 4, 450 and 50 GB/s at 0.75, in bytes a millisecond."""
    from torchrec.distributed.planner.types import CollectiveType as Kind

    links = _Links(load_cluster("h100:2x4"))
    intra, inter = 337.5e6, 37.5e6
    assert links.get_bw(4, 1, Kind.ALL_TO_ALL) == float("inf")
    # of 8 parts one stays, three go inside the host, four outside
    assert links.get_bw(4, 8, Kind.ALL_TO_ALL) == pytest.approx(1 / (3 / 8 / intra + 4 / 8 / inter))
    assert links.get_bw(4, 4, Kind.REDUCE_SCATTER) == pytest.approx(intra * 4 / 3)
    assert links.get_bw(4, 8, Kind.ALL_GATHER) == pytest.approx(min(intra, 4 * inter) * 8 / 7)
