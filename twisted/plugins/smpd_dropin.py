"""Tells twistd of `smpd`; loads nothing of it until it is asked for."""

from twisted.application.service import ServiceMaker

smpd = ServiceMaker(
    "smpd", "smpd.tap", "An SMP relay: message queues of the SimpleX network", "smpd"
)
