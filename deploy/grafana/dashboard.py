#!/usr/bin/env python3
"""Writes egressd.json, the Grafana dashboard: `dashboard.py > egressd.json`.

The dashboard is generated so that its panels are said once each, in the order in which one looks when something is
wrong; a test holds the file to this program, its expressions to Prometheus and to the list of metrics, and its shape
to Grafana's own types.
"""

import json

SELECTED = 'job="egressd",instance=~"$instance"'
DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}
WIDTH = 24
# Blocked, expired and discarded sends were not.
TRIED = ',outcome=~"delivered|rejected|failed"'


def rate(metric, by="", more=""):
    grouping = f"sum by ({by}) " if by else "sum "
    return f"{grouping}(rate({metric}{{{SELECTED}{more}}}[$__rate_interval]))"


def quantile(of, metric, by=""):
    return f"histogram_quantile({of}, {rate(metric + '_bucket', ', '.join(filter(None, [by, 'le'])))})"


def gauge(metric, by="", how="sum"):
    return f"{how} by ({by}) ({metric}{{{SELECTED}}})" if by else f"{how}({metric}{{{SELECTED}}})"


def thresholds(*steps):
    """(colour, from) pairs; the first one's `from` is everything below."""
    return {"mode": "absolute", "steps": [{"color": colour, "value": value} for colour, value in steps]}


GREEN = thresholds(("green", None))


def panel(kind, title, what, queries, width, height, unit="short", steps=GREEN, custom=None, options=None, least=None):
    defaults = {"unit": unit, "thresholds": steps, "mappings": [], "custom": custom or {}}
    if least is not None:
        defaults["min"] = least
    return {
        "type": kind,
        "title": title,
        "description": what,
        "datasource": DATASOURCE,
        "gridPos": {"h": height, "w": width, "x": 0, "y": 0},
        "fieldConfig": {"defaults": defaults, "overrides": []},
        "options": options or {},
        "targets": [
            {
                "refId": chr(ord("A") + number),
                "datasource": DATASOURCE,
                "expr": expression,
                "legendFormat": legend,
                "range": True,
            }
            for number, (expression, legend) in enumerate(queries)
        ],
    }


def stat(title, what, expression, unit="short", steps=GREEN):
    options = {
        "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
        "colorMode": "background",
        "graphMode": "area",
        "textMode": "auto",
        "justifyMode": "auto",
        "orientation": "auto",
    }
    return panel("stat", title, what, [(expression, "")], 4, 4, unit, steps, options=options)


def lines(title, what, queries, unit="short", width=8, stacked=False, steps=GREEN):
    custom = {
        "drawStyle": "line",
        "lineWidth": 1,
        "fillOpacity": 20 if stacked else 5,
        "showPoints": "never",
        "stacking": {"mode": "normal" if stacked else "none", "group": "A"},
        "thresholdsStyle": {"mode": "off" if steps is GREEN else "line"},
    }
    options = {
        "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True, "calcs": []},
        "tooltip": {"mode": "multi", "sort": "desc"},
    }
    return panel("timeseries", title, what, queries, width, 8, unit, steps, custom, options, least=0)


def states(title, what, queries, mappings, width=12):
    made = panel(
        "state-timeline",
        title,
        what,
        queries,
        width,
        6,
        custom={"fillOpacity": 70, "lineWidth": 0},
        options={
            "showValue": "never",
            "mergeValues": True,
            "alignValue": "left",
            "rowHeight": 0.9,
            "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True, "calcs": []},
            "tooltip": {"mode": "single", "sort": "none"},
        },
    )
    made["fieldConfig"]["defaults"]["mappings"] = [
        {
            "type": "value",
            "options": {
                value: {"text": text, "color": colour, "index": index}
                for index, (value, text, colour) in enumerate(mappings)
            },
        }
    ]
    return made


ROWS = [
    (
        "Is it well",
        [
            stat(
                "Nodes",
                "Nodes that answer Prometheus.",
                'sum(up{job="egressd",instance=~"$instance"})',
                steps=thresholds(("red", None), ("green", 1)),
            ),
            stat(
                "Usable sources",
                "Addresses that deliveries may leave from now.",
                gauge("egressd_source_usable"),
                steps=thresholds(("red", None), ("green", 1)),
            ),
            stat("Finished", "Sends that ended, of every outcome.", rate("egressd_sends_total"), "ops"),
            stat(
                "Failed",
                "Of what was tried, the share that got no complete response.",
                rate("egressd_sends_total", more=',outcome="failed"')
                + " / "
                + f"({rate('egressd_sends_total', more=TRIED)} > 0)",
                "percentunit",
                thresholds(("green", None), ("orange", 0.2), ("red", 0.5)),
            ),
            stat(
                "Oldest queued",
                "How long the longest-waiting send has waited.",
                gauge("egressd_oldest_queued_seconds", how="max"),
                "s",
                thresholds(("green", None), ("orange", 60), ("red", 3600)),
            ),
            stat(
                "Overdue",
                "Deliveries in flight 250 ms past their deadline. Always 0.",
                gauge("egressd_overdue_deliveries"),
                steps=thresholds(("green", None), ("red", 1)),
            ),
        ],
    ),
    (
        "Sends",
        [
            lines(
                "By outcome",
                "Sends that ended, by how.",
                [(rate("egressd_sends_total", "outcome"), "{{outcome}}")],
                "ops",
                stacked=True,
            ),
            lines(
                "Why not delivered",
                "Sends that ended with an error, by its code.",
                [(rate("egressd_sends_total", "code", ',code!="none"'), "{{code}}")],
                "ops",
            ),
            lines(
                "Receivers' answers",
                "Complete responses by class.",
                [(rate("egressd_responses_total", "status_class"), "{{status_class}}")],
                "ops",
                stacked=True,
            ),
            lines(
                "Accepted and refused",
                "Sends put on disk, and sends refused with their reason.",
                [
                    (rate("egressd_sends_accepted_total"), "accepted"),
                    (rate("egressd_sends_refused_total", "reason"), "refused: {{reason}}"),
                ],
                "ops",
                width=12,
            ),
            lines(
                "Waiting",
                "Sends held until their execution finishes, sends queued, and of these events that wait for a batch.",
                [
                    (gauge("egressd_held_sends"), "held"),
                    (gauge("egressd_queued_sends"), "queued"),
                    (gauge("egressd_batch_events"), "for their batch"),
                ],
                width=12,
            ),
        ],
    ),
    (
        "Time",
        [
            lines(
                "Delivery",
                "From the start of a delivery to its end. The deadline is 5 s.",
                [
                    (quantile(q, "egressd_delivery_seconds"), f"p{name}")
                    for q, name in ((0.5, "50"), (0.95, "95"), (0.99, "99"))
                ],
                "s",
                steps=thresholds(("green", None), ("red", 5.25)),
            ),
            lines(
                "Phases, p99",
                "Where the time goes.",
                [(quantile(0.99, "egressd_phase_seconds", "phase"), "{{phase}}")],
                "s",
            ),
            lines(
                "In the queue",
                "From release to start.",
                [(quantile(q, "egressd_queue_wait_seconds"), f"p{name}") for q, name in ((0.5, "50"), (0.99, "99"))]
                + [(gauge("egressd_oldest_queued_seconds", how="max"), "oldest")],
                "s",
            ),
        ],
    ),
    (
        "Sources",
        [
            states(
                "Usable",
                "Whether new connections may leave from each address.",
                [(gauge("egressd_source_usable", "instance, source_ip", "max"), "{{source_ip}} on {{instance}}")],
                [("0", "not usable", "red"), ("1", "usable", "green")],
            ),
            states(
                "Verified",
                "What the reflectors see of each address.",
                [(gauge("egressd_source_verified", "instance, source_ip", "min"), "{{source_ip}} on {{instance}}")],
                [("-1", "another address", "red"), ("0", "nobody could say", "orange"), ("1", "as published", "green")],
            ),
            lines(
                "In flight",
                "Deliveries under way, by the address they leave from; `none` before one is chosen.",
                [(gauge("egressd_in_flight", "source_ip"), "{{source_ip}}")],
                stacked=True,
            ),
            lines(
                "Connections",
                "Requests given to a connection, by address and whether it had carried one before.",
                [(rate("egressd_connections_total", "source_ip, reused"), "{{source_ip}}, reused: {{reused}}")],
                "ops",
            ),
            lines(
                "Ports towards the busiest peer",
                "The share of the system's ports in use, TIME_WAIT included. Past the end the next source is tried.",
                [
                    (
                        gauge("egressd_source_ports_used_ratio", "instance, source_ip", "max"),
                        "{{source_ip}} on {{instance}}",
                    ),
                    (rate("egressd_source_ports_exhausted_total", "source_ip"), "{{source_ip}} had none left (per s)"),
                ],
                "percentunit",
                steps=thresholds(("green", None), ("orange", 0.8)),
            ),
        ],
    ),
    (
        "Store and configuration",
        [
            lines(
                "Commit",
                "Every accept and every start waits for one.",
                [(quantile(q, "egressd_store_commit_seconds"), f"p{name}") for q, name in ((0.5, "50"), (0.99, "99"))],
                "s",
                steps=thresholds(("green", None), ("orange", 0.25)),
            ),
            lines(
                "On disk",
                "What the store takes; the oldest go first at `[store] max_bytes`. (In a tier, of its one database.)",
                [(gauge("egressd_store_bytes", "instance"), "{{instance}}")],
                "bytes",
            ),
            lines(
                "Reloads and versions",
                "Reloads by result, and how many nodes run which version.",
                [
                    (
                        f"sum by (result) (increase(egressd_config_reloads_total{{{SELECTED}}}[$__rate_interval]))",
                        "reload {{result}}",
                    ),
                    (gauge("egressd_build_info", "version"), "nodes at {{version}}"),
                    (
                        f"sum(1 - egressd_config_last_reload_successful{{{SELECTED}}})",
                        "nodes whose last reload was refused",
                    ),
                ],
            ),
            lines(
                "Traces",
                "Sends that the collector of traces was told of. Left out: the queue was full.",
                [(rate("egressd_trace_spans_total", "result"), "{{result}}")],
                "ops",
            ),
        ],
    ),
    (
        "Batches",
        [
            lines(
                "By outcome",
                "Batches of events that ended: each outcome is that of all of its sends.",
                [(rate("egressd_batches_total", "kind,outcome"), "{{kind}} {{outcome}}")],
                "ops",
                stacked=True,
            ),
            lines(
                "Tries",
                "Tries to bring a batch to where it goes; one that fails is made again where that may help.",
                [(rate("egressd_batch_tries_total", "kind,outcome"), "{{kind}} {{outcome}}")],
                "ops",
            ),
            lines(
                "Events",
                "Events of the batches that closed.",
                [(rate("egressd_batch_sends_total", "kind"), "{{kind}}")],
                "ops",
                stacked=True,
            ),
        ],
    ),
    (
        "Tunnels",
        [
            lines(
                "Open",
                "Tunnels of the forward proxy, by the address they leave from.",
                [(gauge("egressd_tunnels_open", "source_ip"), "{{source_ip}}")],
                stacked=True,
            ),
            lines(
                "By end",
                "Tunnels that ended, by how; `refused`: never opened, or no longer allowed.",
                [(rate("egressd_tunnels_total", "end"), "{{end}}")],
                "ops",
                stacked=True,
            ),
            lines(
                "Why",
                "Tunnels that were refused or broke off, by the code.",
                [(rate("egressd_tunnels_total", "code", ',code!="none"'), "{{code}}")],
                "ops",
            ),
            lines(
                "Carried",
                "Bytes a second: up, to where they lead, and down, to the clients.",
                [(rate("egressd_tunnel_bytes_total", "direction"), "{{direction}}")],
                "Bps",
                width=12,
            ),
            lines(
                "Until it is open",
                "From a tunnel's request to its answer: lookup, policy and connect.",
                [
                    (quantile(q, "egressd_tunnel_connect_seconds"), f"p{name}")
                    for q, name in ((0.5, "50"), (0.95, "95"), (0.99, "99"))
                ],
                "s",
                width=12,
            ),
        ],
    ),
    (
        "A tier and its database",
        [
            lines(
                "Nodes",
                "Nodes that are not declared dead, as each sees it, and those that were: others have their queues.",
                [
                    (gauge("egressd_nodes", "instance"), "as {{instance}} sees it"),
                    (
                        f"sum (increase(egressd_nodes_lost_total{{{SELECTED}}}[$__rate_interval]))",
                        "declared dead",
                    ),
                ],
            ),
            lines(
                "Leases",
                "How long ago each node renewed its lease. At `[store] lease` it is taken for dead.",
                [(gauge("egressd_lease_age_seconds", "instance", "max"), "{{instance}}")],
                "s",
                steps=thresholds(("green", None), ("orange", 7.5)),
            ),
            lines(
                "Taken over",
                "Sends of dead nodes that others took over, a second.",
                [(rate("egressd_sends_adopted_total", "instance"), "by {{instance}}")],
                "ops",
            ),
            lines(
                "Oldest transaction",
                "Whatever is open in the database's cluster holds up tails and vacuum for so long.",
                [(gauge("egressd_store_oldest_transaction_seconds", how="max"), "open for")],
                "s",
                width=12,
                steps=thresholds(("green", None), ("orange", 300)),
            ),
            lines(
                "Dead rows of the queue's tables",
                "They come down with every vacuum; where they only grow, something holds it back.",
                [(gauge("egressd_store_dead_tuples", how="max"), "dead rows")],
                width=12,
                steps=thresholds(("green", None), ("orange", 1000000)),
            ),
        ],
    ),
]


def placed():
    """Every panel at its place: rows below each other, panels left to right, wrapped at the width."""
    panels, y, number = [], 0, 0
    for title, members in ROWS:
        number += 1
        panels.append(
            {
                "type": "row",
                "id": number,
                "title": title,
                "collapsed": False,
                "panels": [],
                "gridPos": {"h": 1, "w": WIDTH, "x": 0, "y": y},
            }
        )
        y, x, tallest = y + 1, 0, 0
        for member in members:
            number += 1
            place = member["gridPos"]
            if x + place["w"] > WIDTH:
                y, x, tallest = y + tallest, 0, 0
            panels.append({"id": number, **member, "gridPos": {**place, "x": x, "y": y}})
            x, tallest = x + place["w"], max(tallest, place["h"])
        y += tallest
    return panels


DASHBOARD = {
    "uid": "egressd",
    "title": "egressd",
    "description": "What leaves, from which address, and how it ends.",
    "tags": ["egressd"],
    "schemaVersion": 39,
    "version": 1,
    "editable": True,
    "graphTooltip": 1,
    "refresh": "30s",
    "time": {"from": "now-3h", "to": "now"},
    "timezone": "utc",
    "annotations": {"list": []},
    "links": [],
    "templating": {
        "list": [
            {
                "name": "datasource",
                "type": "datasource",
                "label": "Prometheus",
                "query": "prometheus",
                "hide": 0,
                "skipUrlSync": False,
                "multi": False,
                "includeAll": False,
                "refresh": 1,
                "options": [],
                "current": {"selected": True, "text": "default", "value": "default"},
            },
            {
                "name": "instance",
                "type": "query",
                "label": "Node",
                "datasource": DATASOURCE,
                "hide": 0,
                "skipUrlSync": False,
                "query": "label_values(egressd_build_info, instance)",
                "refresh": 2,
                "sort": 1,
                "multi": True,
                "includeAll": True,
                "allValue": ".+",
                "options": [],
                "current": {"selected": True, "text": "All", "value": "$__all"},
            },
        ]
    },
    "panels": placed(),
}

if __name__ == "__main__":
    print(json.dumps(DASHBOARD, indent=2, ensure_ascii=False))
