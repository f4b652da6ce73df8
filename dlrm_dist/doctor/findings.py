"""All that is amiss, what is broken first."""

from dlrm_dist.doctor import host_findings, layout_findings, speed_findings, storage_findings
from dlrm_dist.doctor.examination import Found
from dlrm_dist.doctor.finding import Finding
from dlrm_dist.planning.cluster import Cluster


def findings(found: Found, known: Cluster) -> list[Finding]:
    """Of the hosts, their speed as against that of the known cluster, and their storage."""
    everything = [
        *layout_findings.findings(found.facts),
        *host_findings.findings(found),
        *storage_findings.findings(found, known),
        *speed_findings.findings(found, known),
    ]
    return sorted(everything, key=lambda each: each.level)
