"""The XML of filters: what is written is read again as the same, and libvirt itself dumps exactly what we write."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings

from ops_pipeline.hypervisor.filters.model import CHAIN_PRIORITIES, Filter, Rule, default_priority
from ops_pipeline.hypervisor.filters.protocols import PROTOCOLS
from ops_pipeline.hypervisor.filters.xml_text import parse, render
from ops_pipeline_tests.hypervisor.filters.samples import PREFIX, VALUES, filters, rules, uuid_of
from ops_pipeline_tests.hypervisor.libvirt_servers import LibvirtServer

NAME = f"{PREFIX}sample"


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(filters())
def test_what_is_written_is_read_again_as_the_same_filter(one: Filter) -> None:
    assert parse(render(one)) == one
    assert render(parse(render(one))) == render(one)


def test_there_are_samples_of_every_kind_of_value() -> None:
    assert {kind for kinds in PROTOCOLS.values() for kind in kinds.values()} == VALUES.keys()


def sample(rule: Rule) -> Filter:
    return Filter(NAME, uuid_of(NAME), rules=(rule,))


def dumped(server: LibvirtServer, xml: str) -> str:
    """What libvirt makes of XML."""
    with server.connection() as connection:
        connection.nwfilterDefineXML(xml)
        return connection.nwfilterLookupByName(NAME).XMLDesc()


@pytest.mark.parametrize("protocol", sorted(PROTOCOLS))
def test_libvirt_dumps_every_attribute_of_every_protocol_as_it_was_written(
    libvirtd: LibvirtServer, protocol: str
) -> None:
    with libvirtd.connection() as connection:

        @settings(max_examples=8, deadline=None, suppress_health_check=list(HealthCheck))
        @given(rules(protocol=protocol, whole=True))
        def check(rule: Rule) -> None:
            xml = render(sample(rule))
            connection.nwfilterDefineXML(xml)
            assert connection.nwfilterLookupByName(NAME).XMLDesc() == xml

        check()


def test_libvirt_dumps_whole_filters_as_they_were_written(libvirtd: LibvirtServer) -> None:
    with libvirtd.connection() as connection:

        @settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
        @given(filters())
        def check(one: Filter) -> None:
            connection.nwfilterDefineXML(render(one, uuid_of(one.name)))
            assert connection.nwfilterLookupByName(one.name).XMLDesc() == render(one, uuid_of(one.name))

        check()


HAND_WRITTEN = f"""
<filter name='{NAME}' chain='ipv4'>
  <uuid>{uuid_of(NAME).upper()}</uuid>
  <!-- by hand -->
  <rule action='drop' direction='in' statematch='0'><tcp dstportstart='0x16' srcipmask='255.255.0.0' state='related,NEW'
     srcipaddr='10.9.0.0' unknown='attribute'/></rule>
  <rule action='accept' direction='out' priority='-3'><mac protocolid='0x806' srcmacaddr='AA:B:C:D:E:F'/></rule>
  <filterref filter='clean-traffic'><parameter name='IP' value='10.0.0.1'/>
    <parameter name='B' value='no good'/></filterref>
</filter>
"""


def test_a_dump_of_what_somebody_wrote_by_hand_is_read_in_the_one_spelling(libvirtd: LibvirtServer) -> None:
    """Libvirt fills in the chain's priority, sorts states, shortens masks, and drops what it does not know."""
    found = parse(dumped(libvirtd, HAND_WRITTEN))
    assert (found.uuid, found.priority) == (uuid_of(NAME), -700)
    assert found.rules == (
        Rule("accept", "out", -3, "mac", (("srcmacaddr", "aa:0b:0c:0d:0e:0f"), ("protocolid", "arp"))),
        Rule(
            "drop",
            "in",
            500,
            "tcp",
            (("srcipaddr", "10.9.0.0"), ("srcipmask", "16"), ("state", "NEW,RELATED"), ("dstportstart", "22")),
            state_match=False,
        ),
    )
    assert found.references[0].parameters == (("IP", "10.0.0.1"),)
    assert found.oddities == ("a filter is included behind a rule",)


@pytest.mark.parametrize("chain", sorted(CHAIN_PRIORITIES))
def test_the_priorities_of_chains_are_those_that_libvirt_fills_in(libvirtd: LibvirtServer, chain: str) -> None:
    """Except that of stp, which libvirt documents and forgets: ours are always written out."""
    found = parse(dumped(libvirtd, f"<filter name='{NAME}' chain='{chain}'/>"))
    assert found.priority == (0 if chain == "stp" else default_priority(chain))
    assert default_priority(f"{chain}-x") == (0 if chain == "root" else CHAIN_PRIORITIES[chain])


@pytest.mark.parametrize(
    ("xml", "oddity"),
    [
        ("<rule action='drop' direction='in'/>", "a rule matches nothing, or several things"),
        ("<rule action='drop' direction='in'><tcp/><tcp match='no'/></rule>", "matches nothing, or several things"),
        ("<rule action='drop' direction='in'><tcp match='no' dscp='3'/></rule>", "<tcp> has 'match'"),
        ("<rule action='drop' direction='in'><tcp ipset='x'/></rule>", "<tcp> has 'ipset'"),
        ("<rule action='drop' direction='in'><quic/></rule>", "an unknown protocol"),
        ("<rule action='drop' direction='in'><tcp dscp='99'/></rule>", "dscp of <tcp>"),
        ("<other/>", "<other> is unknown"),
    ],
)
def test_what_no_desired_filter_can_have_makes_a_dump_differ_from_every_one(xml: str, oddity: str) -> None:
    found = parse(f"<filter name='{NAME}' chain='root'><uuid>{uuid_of(NAME)}</uuid>{xml}</filter>")
    assert oddity in found.oddities[0]
