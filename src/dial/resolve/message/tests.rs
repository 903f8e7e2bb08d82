use super::*;

const NAME: &str = "hook.example.com";

fn name(text: &str) -> Name {
    Name::from_text(text).unwrap()
}

/// Writes messages as no honest server would.
struct Draft(Vec<u8>);

impl Draft {
    /// The header and question of an answer to this question, with so many records announced.
    fn to(question: &Question, answers: u16) -> Self {
        let mut bytes = question.bytes[..question.end].to_vec();
        bytes[2..4].copy_from_slice(&[0x81, 0x80]);
        bytes[6..12].copy_from_slice(&[(answers >> 8) as u8, answers as u8, 0, 0, 0, 0]);
        Self(bytes)
    }

    fn count(mut self, at: usize, count: u16) -> Self {
        self.0[at..at + 2].copy_from_slice(&count.to_be_bytes());
        self
    }

    fn flags(mut self, flags: u16) -> Self {
        self.0[2..4].copy_from_slice(&flags.to_be_bytes());
        self
    }

    fn raw(mut self, bytes: &[u8]) -> Self {
        self.0.extend(bytes);
        self
    }

    fn record(self, owner: &[u8], kind: u16, ttl: u32, data: &[u8]) -> Self {
        let length = (data.len() as u16).to_be_bytes();
        self.raw(owner).raw(&kind.to_be_bytes()).raw(&[0, 1]).raw(&ttl.to_be_bytes()).raw(&length).raw(data)
    }
}

/// The asked name, where the question has it.
const OWNER: &[u8] = &[0xc0, 12];
const A: u16 = 1;
const TXT: u16 = 16;

fn read(question: &Question, draft: &Draft) -> Option<Reading> {
    match question.weigh(&draft.0[..draft.0.len().min(DNS_MESSAGE_BYTES_MAX)]) {
        Weighed::Answer(answer) => answer.read(&name(NAME), RecordType::A),
        other => panic!("{other:?}"),
    }
}

fn question() -> Question {
    Question::new(&name(NAME), RecordType::A, true)
}

#[test]
fn names_are_read_and_shown_as_they_are() {
    for (text, shown) in [
        (NAME, Some(NAME)),
        ("HooK.Example.COM", Some(NAME)),
        ("-a.example.com", Some("-a.example.com")),
        ("a-.example.com", Some("a-.example.com")),
        ("_a._b.example.com", Some("_a._b.example.com")),
        ("xn--bcher-kva.example", Some("xn--bcher-kva.example")),
        ("a b.example\u{7f}", Some("a\\032b.example\\127")),
        ("a..b", None),
        (".a", None),
        ("", None),
    ] {
        assert_eq!(Name::from_text(text).map(|name| name.to_string()).as_deref(), shown, "{text:?}");
    }
    let longest = |last: usize| {
        [&"a".repeat(63), &"b".repeat(63), &"c".repeat(63), &"d".repeat(last)].map(String::as_str).join(".")
    };
    assert!(Name::from_text(&longest(61)).is_some() && Name::from_text(&longest(62)).is_none());
    assert!(Name::from_text(&"a".repeat(64)).is_none());
    assert_eq!(Name::root().to_string(), ".");
}

#[test]
fn a_question_is_hard_to_guess_and_its_answer_is_known() {
    let questions: Vec<Question> = (0..64).map(|_| question()).collect();
    let distinct = |at: std::ops::Range<usize>| {
        questions.iter().map(|question| &question.bytes[at.clone()]).collect::<std::collections::HashSet<_>>().len()
    };
    assert!(distinct(0..2) > 32, "ids");
    assert!(distinct(12..30) > 32, "letters' case");
    let first = &questions[0];
    assert!(first.bytes[12..30].eq_ignore_ascii_case(&name(NAME).0));

    let weighed = |draft: Draft| match first.weigh(&draft.0) {
        Weighed::Answer(_) => "answer",
        Weighed::OtherCase(_) => "other case",
        Weighed::Unreadable => "unreadable",
        Weighed::Stray => "stray",
    };
    let swapped = |mut draft: Draft, at: std::ops::Range<usize>| {
        for byte in draft.0[at].iter_mut().filter(|byte| byte.is_ascii_alphabetic()) {
            *byte ^= 0x20;
        }
        draft
    };
    let with = |mut draft: Draft, at: usize, byte: u8| {
        draft.0[at] = byte;
        draft
    };
    let plain = || Draft::to(first, 0);
    for (what, draft, expected) in [
        ("its answer", plain(), "answer"),
        ("another id", with(plain(), 1, first.bytes[1] ^ 1), "stray"),
        ("letters in another case", swapped(plain(), 12..30), "other case"),
        ("another name", with(plain(), 14, b'x'), "stray"),
        ("another type", with(plain(), 31, 28), "stray"),
        ("another class", with(plain(), 33, 3), "stray"),
        ("the question itself", plain().flags(0x0100), "unreadable"),
        ("a notification", plain().flags(0xa180), "unreadable"),
        ("no question", plain().count(4, 0), "unreadable"),
        ("no question, as a format error", plain().count(4, 0).flags(0x8181), "answer"),
        ("two questions", plain().count(4, 2), "unreadable"),
        ("a header's first half", Draft(plain().0[..6].to_vec()), "unreadable"),
        ("its id alone", Draft(plain().0[..2].to_vec()), "unreadable"),
        ("nothing", Draft(Vec::new()), "stray"),
    ] {
        assert_eq!(weighed(draft), expected, "{what}");
    }
}

#[test]
fn what_an_empty_answer_says() {
    let question = question();
    let opt = |extended: u8| [0, 0, 41, 4, 208, extended, 0, 0, 0, 0, 0];
    for (what, draft, code, lame) in [
        ("no address", Draft::to(&question, 0), 0, false),
        ("lame", Draft::to(&question, 0).flags(0x8000), 0, true),
        ("lame, with a referral", Draft::to(&question, 0).flags(0x8000).count(8, 1), 0, true),
        ("authoritative", Draft::to(&question, 0).flags(0x8400), 0, false),
        ("a failure", Draft::to(&question, 0).flags(0x8002), 2, false),
        ("a refusal", Draft::to(&question, 0).flags(0x8005), 5, false),
        ("an extended code", Draft::to(&question, 0).count(10, 1).raw(&opt(1)), 16, false),
        ("none such", Draft::to(&question, 0).count(10, 1).raw(&opt(0)), 0, false),
        ("one that is cut", Draft::to(&question, 0).count(10, 1).raw(&opt(1)[..4]), 0, false),
        ("an unknown code", Draft::to(&question, 0).flags(0x800f), 15, false),
    ] {
        let Weighed::Answer(answer) = question.weigh(&draft.0) else { panic!("{what}") };
        assert_eq!((answer.rcode().0, answer.is_lame()), (code, lame), "{what}");
    }
}

#[test]
fn only_what_the_question_leads_to_is_read() {
    let question = question();
    let other = &[5, b'o', b't', b'h', b'e', b'r', 0];
    let addresses = |draft: Draft| {
        read(&question, &draft).map(|reading| {
            let addresses: Vec<String> = reading.addresses.iter().map(ToString::to_string).collect();
            (
                reading.aliases.iter().map(Name::to_string).collect::<Vec<_>>().join(" "),
                addresses.join(" "),
                reading.ttl,
            )
        })
    };
    let of = |aliases: &str, addresses: &str, ttl| Some((aliases.to_owned(), addresses.to_owned(), ttl));
    for (what, draft, expected) in [
        ("an address", Draft::to(&question, 1).record(OWNER, A, 60, &[192, 0, 2, 1]), of("", "192.0.2.1", 60)),
        (
            "the highest bit of a TTL",
            Draft::to(&question, 1).record(OWNER, A, 0x8000_0000, &[192, 0, 2, 1]),
            of("", "192.0.2.1", 0),
        ),
        ("another's address", Draft::to(&question, 1).record(other, A, 60, &[192, 0, 2, 1]), of("", "", u32::MAX)),
        (
            "an alias after its target's address",
            Draft::to(&question, 2).record(other, A, 60, &[192, 0, 2, 1]).record(OWNER, 5, 9, other),
            of("other", "192.0.2.1", 9),
        ),
        (
            "types that were not asked for",
            Draft::to(&question, 3).record(OWNER, 46, 1, &[1; 40]).record(OWNER, 28, 1, &[1; 16]).record(
                OWNER,
                A,
                60,
                &[192, 0, 2, 1],
            ),
            of("", "192.0.2.1", 60),
        ),
        (
            "the same address twice",
            Draft::to(&question, 2).record(OWNER, A, 60, &[192, 0, 2, 1]).record(OWNER, A, 60, &[192, 0, 2, 1]),
            of("", "192.0.2.1", 60),
        ),
        ("an address of three bytes", Draft::to(&question, 1).record(OWNER, A, 60, &[192, 0, 2]), None),
        ("fewer records than announced", Draft::to(&question, 2).record(OWNER, A, 60, &[192, 0, 2, 1]), None),
        ("a pointer to itself", Draft::to(&question, 1).record(&[0xc0, 34], A, 60, &[192, 0, 2, 1]), None),
        ("a pointer forwards", Draft::to(&question, 1).record(&[0xc0, 40], A, 60, &[192, 0, 2, 1]), None),
        ("a pointer into the header", Draft::to(&question, 1).record(&[0xc0, 0], A, 60, &[192, 0, 2, 1]), None),
        ("a pointer past the end", Draft::to(&question, 1).record(&[0xff, 0xff], A, 60, &[192, 0, 2, 1]), None),
        ("pointers in a circle", Draft::to(&question, 1).record(OWNER, 5, 60, &[1, b'a', 0xc0, 48, 0xc0, 46]), None),
        ("an unknown kind of label", Draft::to(&question, 1).record(&[0x41, 0], A, 60, &[192, 0, 2, 1]), None),
        ("an alias of a name too long", Draft::to(&question, 1).record(OWNER, 5, 60, &long(130)), None),
        (
            "a record cut short",
            Draft(Draft::to(&question, 1).record(OWNER, A, 60, &[192, 0, 2, 1]).0[..40].to_vec()),
            None,
        ),
    ] {
        assert_eq!(addresses(draft), expected, "{what}");
    }
}

/// A name of so many labels of one letter, uncompressed.
fn long(labels: usize) -> Vec<u8> {
    let mut name: Vec<u8> = [1, b'x'].repeat(labels);
    name.push(0);
    name
}

#[test]
fn at_most_sixteen_addresses_and_nine_aliases_come_of_an_answer() {
    let question = question();
    let mut many = Draft::to(&question, 100);
    for last in 0..100 {
        many = many.record(OWNER, A, 60, &[192, 0, 2, last]);
    }
    assert_eq!(read(&question, &many).unwrap().addresses.len(), DNS_ADDRESSES_MAX);
    let mut chain = Draft::to(&question, 21).record(OWNER, 5, 60, &[1, b'a', 0]);
    for at in 0..20 {
        chain = chain.record(&[1, b'a' + at, 0], 5, 60, &[1, b'b' + at, 0]);
    }
    assert_eq!(read(&question, &chain).unwrap().aliases.len(), DNS_CNAMES_MAX + 1);
}

/// CPU that this thread has used.
fn cpu() -> std::time::Duration {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").expect("Linux says");
    std::time::Duration::from_nanos(text.split(' ').next().and_then(|nanos| nanos.parse().ok()).expect("a number"))
}

/// Answers that whoever holds a name could have a resolver pass on, or a resolver could be made to: what it costs to
/// read one is bounded, and the truth that stands within what is looked at is found.
#[test]
fn what_reading_costs_is_bounded_whatever_an_answer_says() {
    let question = question();
    let truth = |draft: Draft| draft.record(OWNER, A, 60, &[192, 0, 2, 1]);
    let full = |mut draft: Draft, owner: &[u8], kind: u16, data: &[u8]| {
        while draft.0.len() < 65_000 {
            draft = draft.record(owner, kind, 60, data);
        }
        draft
    };
    // 126 labels, and pointers to each of them.
    let deep = long(126);
    let mut ladder = truth(Draft::to(&question, u16::MAX)).record(&deep, A, 60, &[192, 0, 2, 9]);
    let top = ladder.0.len() - deep.len() - 14;
    for step in 0..3_000 {
        let at = top + 2 * (step % 120);
        ladder = ladder.record(&[0xc0 | (at >> 8) as u8, at as u8], A, 60, &[192, 0, 2, 9]);
    }
    // Each pointer leads to the one before it.
    let mut pointers = truth(Draft::to(&question, u16::MAX));
    let mut before = 12;
    for _ in 0..2_000 {
        let at = pointers.0.len();
        pointers = pointers.record(&[0xc0 | (before >> 8) as u8, before as u8], A, 60, &[192, 0, 2, 9]);
        before = at;
    }
    let rows = [
        ("long owner names", full(truth(Draft::to(&question, u16::MAX)), &deep, A, &[192, 0, 2, 9]), 1),
        ("long owner names of another type", full(truth(Draft::to(&question, u16::MAX)), &deep, TXT, &[0; 9]), 1),
        ("long targets", full(truth(Draft::to(&question, u16::MAX)), &[1, b'y', 0], 5, &deep), 1),
        ("a ladder of labels", ladder, 1),
        // All of them are the asked name in the end.
        ("a chain of pointers", pointers, 2),
        ("many small records", full(truth(Draft::to(&question, u16::MAX)), &[0], TXT, &[]), 1),
        ("addresses of other names", full(truth(Draft::to(&question, u16::MAX)), &[1, b'y', 0], A, &[192, 0, 2, 9]), 1),
        ("huge texts", full(truth(Draft::to(&question, 60)), OWNER, TXT, &[0; 1_000]), 1),
        (
            "huge texts beside the answer",
            full(truth(Draft::to(&question, 1)).count(10, 60), OWNER, TXT, &[0; 1_000]),
            1,
        ),
        ("one text of all there is", truth(Draft::to(&question, 2)).record(OWNER, TXT, 60, &[0; 65_000]), 1),
    ];
    for (what, draft, addresses) in rows {
        let reading = read(&question, &draft).unwrap_or_else(|| panic!("{what}: is read as far as it is looked at"));
        assert!(reading.looked_at <= DNS_LABELS_MAX, "{what}: {} labels", reading.looked_at);
        assert_eq!(reading.addresses[0].to_string(), "192.0.2.1", "{what}");
        assert_eq!(reading.addresses.len(), addresses, "{what}");
        const TIMES: u32 = 20;
        let before = cpu();
        for _ in 0..TIMES {
            std::hint::black_box(read(&question, &draft));
        }
        let each = (cpu() - before) / TIMES;
        assert!(each < std::time::Duration::from_millis(5), "{what}: {each:?} of CPU in a debug build");
    }
    // Bytes of names are what is copied: of each record two names of 255 at most.
    const { assert!(2 * DNS_RECORDS_MAX * 255 <= 64 * 1024) };
}

#[test]
fn no_bytes_make_it_panic_or_look_longer() {
    use proptest::prelude::*;
    let question = question();
    let end = question.end;
    proptest!(|(
        tail in proptest::collection::vec(any::<u8>(), 0..600),
        counts in any::<[u8; 6]>(),
        flags in any::<u8>(),
        small in any::<bool>(),
    )| {
        let mut bytes = question.bytes[..end].to_vec();
        bytes[2..4].copy_from_slice(&[0x81, flags]);
        bytes[6..12].copy_from_slice(&counts);
        // Bytes that are mostly lengths and pointers lead further than bytes at random.
        bytes.extend(tail.iter().map(|byte| if small { [0, 1, 5, 12, 28, 0xc0, 4, 30][usize::from(byte % 8)] } else { *byte }));
        for cut in [bytes.len(), bytes.len() / 2, end] {
            if let Weighed::Answer(answer) = question.weigh(&bytes[..cut.min(bytes.len())]) {
                let _ = (answer.rcode(), answer.is_lame(), answer.is_truncated());
                for kind in [RecordType::A, RecordType::AAAA] {
                    if let Some(reading) = answer.read(&name(NAME), kind) {
                        prop_assert!(reading.looked_at <= DNS_LABELS_MAX);
                        prop_assert!(reading.addresses.len() <= DNS_ADDRESSES_MAX);
                        prop_assert!(reading.aliases.len() <= DNS_CNAMES_MAX + 1);
                    }
                }
            }
        }
    });
}
