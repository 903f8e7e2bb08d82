use super::is_bad;
use crate::outcome::Code;
use crate::policy::fixtures::{Question, settings};

/// Every closed port, as the two lists give them.
const CLOSED: &str = "
    0 1 7 9 11 13 15 17 19 20 21 22 23 25 37 42 43 53 69 77 79 87 95 101 102 103 104 109 110 111 113 115 117 119 123
    135 137 139 143 161 179 389 427 465 512 513 514 515 526 530 531 532 540 548 554 556 563 587 601 636 989 990 993
    995 1719 1720 1723 2049 3659 4045 4190 5060 5061 6000 6566 6665 6666 6667 6668 6669 6679 6697 10080
    2375 2376 2379 2380 3306 5432 5984 6379 6443 8500 9200 9300 10250 11211 15672 27017 50070";

#[test]
fn the_bad_ports_are_closed_and_no_other() {
    let closed: Vec<u16> = CLOSED.split_whitespace().map(|port| port.parse().unwrap()).collect();
    for port in 0..=u16::MAX {
        assert_eq!(is_bad(port), closed.contains(&port), "{port}");
    }
    println!("{} closed ports", closed.len());
}

#[test]
fn a_bad_port_stays_closed_whatever_is_opened() {
    let everything = Question {
        settings: crate::config::PolicySettings { ports: vec![(0, 65535)], ..settings() },
        ..Question::default()
    };
    for port in CLOSED.split_whitespace() {
        for scheme in ["http", "https"] {
            let fate = everything.ask(&format!("{scheme}://receiver.example.com:{port}/"));
            assert_eq!(fate.code(), Some(Code::PolicyPort), "{scheme} {port}");
        }
    }
    assert_eq!(everything.ask("http://receiver.example.com:81/").code(), None);
}

#[test]
fn a_range_of_ports_holds_at_its_edges() {
    let question = Question {
        settings: crate::config::PolicySettings { ports: vec![(443, 443), (8000, 8002), (65535, 65535)], ..settings() },
        ..Question::default()
    };
    for (port, word) in [
        (442, "policy_port"),
        (443, "allowed"),
        (444, "policy_port"),
        (80, "policy_port"),
        (7999, "policy_port"),
        (8000, "allowed"),
        (8001, "allowed"),
        (8002, "allowed"),
        (8003, "policy_port"),
        (65534, "policy_port"),
        (65535, "allowed"),
    ] {
        assert_eq!(question.ask(&format!("https://receiver.example.com:{port}/")).word(), word, "{port}");
    }
    // Without a port, the scheme's own is meant.
    assert_eq!(question.ask("https://receiver.example.com/").word(), "allowed");
    assert_eq!(question.ask("http://receiver.example.com/").word(), "policy_port");
}

#[test]
fn by_default_80_443_and_the_high_ports_are_open() {
    let default = Question::default();
    for (port, word) in [
        (79, "policy_port"),
        (80, "allowed"),
        (81, "policy_port"),
        (442, "policy_port"),
        (443, "allowed"),
        (444, "policy_port"),
        (1023, "policy_port"),
        (1024, "allowed"),
        (8080, "allowed"),
        (8443, "allowed"),
        (6380, "allowed"),
        (65535, "allowed"),
    ] {
        assert_eq!(default.ask(&format!("http://receiver.example.com:{port}/")).word(), word, "{port}");
    }
}
