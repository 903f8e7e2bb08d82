//! Ports that no send may use, whatever the configuration opens: services that can be talked into doing something
//! by an HTTP request, and management ports that are never a webhook's.
//!
//! Numbers alone. Which of the other ports are open is `policy.ports`, held by [`super::Policy`].

/// Whether `port` is closed for good.
pub fn is_bad(port: u16) -> bool {
    port == 0 || FETCH_BAD_PORTS.binary_search(&port).is_ok() || SERVICE_PORTS.binary_search(&port).is_ok()
}

/// The "bad ports" of the WHATWG Fetch Standard (section "Port blocking"), ascending.
pub const FETCH_BAD_PORTS: &[u16] = &[
    0, 1, 7, 9, 11, 13, 15, 17, 19, 20, 21, 22, 23, 25, 37, 42, 43, 53, 69, 77, 79, 87, 95, 101, 102, 103, 104, 109,
    110, 111, 113, 115, 117, 119, 123, 135, 137, 139, 143, 161, 179, 389, 427, 465, 512, 513, 514, 515, 526, 530, 531,
    532, 540, 548, 554, 556, 563, 587, 601, 636, 989, 990, 993, 995, 1719, 1720, 1723, 2049, 3659, 4045, 4190, 5060,
    5061, 6000, 6566, 6665, 6666, 6667, 6668, 6669, 6679, 6697, 10080,
];

/// Databases, caches, cluster and container managers, ascending.
pub const SERVICE_PORTS: &[u16] =
    &[2375, 2376, 2379, 2380, 3306, 5432, 5984, 6379, 6443, 8500, 9200, 9300, 10250, 11211, 15672, 27017, 50070];

// The search above is a binary one.
const _: () = assert!(ascending(FETCH_BAD_PORTS) && ascending(SERVICE_PORTS));

const fn ascending(ports: &[u16]) -> bool {
    let mut at = 1;
    while at < ports.len() {
        if ports[at - 1] >= ports[at] {
            return false;
        }
        at += 1;
    }
    true
}

#[cfg(test)]
mod tests;
