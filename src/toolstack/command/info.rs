//! What `xl info -n` and `xm info` say about the host's CPUs.

use crate::guest_config::Cpus;

/// More CPUs or NUMA nodes than any host has.
const LIMIT: usize = 1 << 16;

/// Reads the CPUs out of it. xl has a table of all that are online; xm has lists of each node's.
pub(super) fn cpus(text: &str) -> Option<Cpus> {
    let field = |name: &str| {
        text.lines()
            .find_map(|line| line.split_once(':').filter(|(key, _)| key.trim_end() == name))
            .map(|(_, value)| value.trim())
    };
    let number = |name: &str| field(name).and_then(|value| value.parse::<u32>().ok());
    let online = number("nr_cpus")?;
    let mut nodes: Vec<Vec<u32>> = vec![Vec::new(); (number("nr_nodes")? as usize).min(LIMIT)];
    let mut add = |node: usize, cpu: u32| {
        if node < LIMIT && (cpu as usize) < LIMIT {
            nodes.resize_with(nodes.len().max(node + 1), Vec::new);
            nodes[node].push(cpu);
        }
    };
    for (cpu, node) in topology(text) {
        add(node, cpu);
    }
    if field("cpu_topology").is_none() {
        for (node, cpu) in node_lists(text) {
            add(node, cpu);
        }
    }
    let highest = number("max_cpu_id").or_else(|| nodes.iter().flatten().max().copied());
    let count = highest.map_or(online, |highest| highest.saturating_add(1).max(online));
    Some(Cpus { count, online, nodes, from_xen: true })
}

/// Lines of numbers below a title: the CPU, and at the end its node.
fn topology(text: &str) -> impl Iterator<Item = (u32, usize)> + '_ {
    let lines = text.lines().skip_while(|line| !line.starts_with("cpu_topology")).skip(2);
    lines.map_while(|line| {
        let (cpu, rest) = line.split_once(':')?;
        Some((cpu.trim().parse().ok()?, rest.split_whitespace().last()?.parse().ok()?))
    })
}

/// `node_to_cpu : node0:0-3,8` and in the lines below `node1:4-7`.
fn node_lists(text: &str) -> Vec<(usize, u32)> {
    let mut found = Vec::new();
    for word in text.split_whitespace().filter_map(|word| word.strip_prefix("node")) {
        let Some((node, list)) = word.split_once(':') else { continue };
        let Ok(node) = node.parse() else { continue };
        for range in list.split(',') {
            let (first, last) = range.split_once('-').unwrap_or((range, range));
            if let (Ok(first), Ok(last)) = (first.parse::<u32>(), last.parse::<u32>()) {
                found.extend((first..=last).take(LIMIT).map(|cpu| (node, cpu)));
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_cpus_of_xl_info() {
        let text = "host                   : dom0\nnr_cpus                : 3\nmax_cpu_id             : 7\n\
                    nr_nodes               : 2\ncpu_topology           :\ncpu:    core    socket     node\n\
                    \u{20} 0:       0        0        0\n  1:       1        0        0\n  4:       0        1        1\n\
                    device topology        :\ndevice           node\nNo device topology data available\n\
                    numa_info              :\nnode:    memsize    memfree    distances\n   0:      4096       1024      10\n";
        let nodes = vec![vec![0, 1], vec![4]];
        assert_eq!(cpus(text), Some(Cpus { count: 8, online: 3, nodes, from_xen: true }));
    }

    #[test]
    fn the_cpus_of_xm_info() {
        let text = "nr_cpus                : 8\nnr_nodes               : 2\nnode_to_cpu            : node0:0-3\n\
                    \u{20}                        node1:4,6-7\nxen_major              : 3\n";
        let nodes = vec![vec![0, 1, 2, 3], vec![4, 6, 7]];
        assert_eq!(cpus(text), Some(Cpus { count: 8, online: 8, nodes, from_xen: true }));
        assert_eq!(cpus("nr_cpus : 8\n"), None);
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused(text in "(nr_cpus|nr_nodes|cpu_topology|node[0-9]+|[-:, \n0-9]){0,60}") {
            let _ = cpus(&text);
        }
    }
}
