# The alert and recording rules, their unit tests, the example configurations, and the names they use.
need promtool prometheus
need amtool prometheus-alertmanager
need_python python pyyaml

rules=$deploy/prometheus
check "promtool accepts the alert and recording rules" promtool check rules "$rules/alerts.yml" "$rules/recording.yml"
check "promtool accepts the example configuration" promtool check config "$rules/prometheus.yml"
check "every alert fires where it must and is quiet where it must (promtool test rules)" \
    promtool test rules "$rules/tests/alerts.test.yml"
check "every metric, label and recorded name in the rules exists" \
    python "$here/metric_names.py" expressions "$rules/alerts.yml" "$rules/recording.yml"
check "every alert has a test in which it fires and a section in the operations guide" \
    python "$here/metric_names.py" alerts "$rules/alerts.yml" "$rules/tests/alerts.test.yml" "$deploy/OPERATIONS.md"

# A copy of the rules in which one thing is wrong, tested in its place.
broken() { # broken SED-EXPRESSION COMMAND…
    local copy=$scratch/rules-$RANDOM
    cp -r "$rules" "$copy"
    sed -i "$1" "$copy"/*.yml
    shift
    cd "$copy"
    "$@"
}
refuses "an expression that does not parse is refused" "parse error" \
    broken 's/max by (job, instance)/max by (job, instance/' promtool check rules alerts.yml
refuses "a wrong metric name in a rule is refused" "no such metric: egressd_sources_usable" \
    broken 's/egressd_source_usable/egressd_sources_usable/' python "$here/metric_names.py" expressions alerts.yml recording.yml
refuses "a label that its metric does not have is refused" "egressd_sends_refused_total has no label code" \
    broken 's/{reason="store"}/{code="store"}/' python "$here/metric_names.py" expressions alerts.yml recording.yml
refuses "a histogram asked for without its buckets is refused" "no such metric: egressd_phase_seconds" \
    broken 's/egressd_phase_seconds_bucket/egressd_phase_seconds/' python "$here/metric_names.py" expressions alerts.yml recording.yml
refuses "a recorded name that nothing records is refused" "no rule records instance:egressd_failed:ratio_5m" \
    broken 's/record: instance:egressd_failed:ratio_5m/record: instance:egressd_failing:ratio_5m/' \
    python "$here/metric_names.py" expressions alerts.yml recording.yml
refuses "an alert that never fires fails its test" "EgressdPortsNearlyUsedUp" \
    broken 's/egressd_source_ports_used_ratio > 0.8/egressd_source_ports_used_ratio > 80/' \
    promtool test rules tests/alerts.test.yml
refuses "an alert that fires too soon fails its test" "EgressdSourceLost" \
    broken 's/ and max_over_time(egressd_source_usable\[1d\]) == 1//' promtool test rules tests/alerts.test.yml
refuses "an alert without a test and a section is refused" "EgressdUnheardOf: no test" \
    broken 's/alert: EgressdDown/alert: EgressdUnheardOf/' \
    python "$here/metric_names.py" alerts alerts.yml tests/alerts.test.yml "$deploy/OPERATIONS.md"

manager=$deploy/alertmanager/alertmanager.yml
check "amtool accepts the Alertmanager example" amtool check-config "$manager"
check "a critical alert goes to on-call" \
    amtool config routes test --config.file="$manager" --verify.receivers=on-call \
    alertname=EgressdStoreFailing severity=critical instance=a
check "a warning goes to tickets" \
    amtool config routes test --config.file="$manager" --verify.receivers=tickets \
    alertname=EgressdSourceLost severity=warning instance=a
refuses "a critical alert that went to tickets would be seen" "on-call" \
    amtool config routes test --config.file="$manager" --verify.receivers=tickets \
    alertname=EgressdStoreFailing severity=critical instance=a
sed 's/receiver: on-call/receiver: nobody/' "$manager" >"$scratch/alertmanager.yml"
refuses "a route to a receiver that is not there is refused" "nobody" amtool check-config "$scratch/alertmanager.yml"
