//! From the text of Slurm's commands to the core's plain types: pure, and strict where a wrong guess would harm.
//!
//! Called by [`super::commands`]. Unknown fields are skipped and unknown state words are kept as unknown, since new
//! releases add them; a line without what a decision needs is an error, and no picture is better than half of one.

use std::str::FromStr;

use gleaner_harvester_core::picture::{JobView, NodeState, NodeView};
use gleaner_proto::{
    hostlist,
    ids::{JobId, NodeName},
};

use super::SlurmError;

/// What [`jobs`] reads: `squeue`'s columns, fixed by us. No column holds text that a user chose.
pub const JOB_COLUMNS: &str = "%A|%T|%N|%e|%S|%Y";

/// All nodes from `scontrol --oneliner show nodes`.
pub fn nodes(text: &str) -> Result<Vec<NodeView>, SlurmError> {
    let lines = text.lines().enumerate().filter(|(_, line)| line.starts_with("NodeName="));
    let nodes = lines.map(|(index, line)| {
        node(line).map_err(|problem| SlurmError::Unreadable {
            command: "scontrol",
            line: index + 1,
            problem,
        })
    });
    nodes.collect()
}

/// Running and planned jobs from `squeue --format` with [`JOB_COLUMNS`]. Jobs without nodes are left out.
pub fn jobs(text: &str) -> Result<Vec<JobView>, SlurmError> {
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    let jobs = lines.filter_map(|(index, line)| {
        let unreadable =
            |problem| SlurmError::Unreadable { command: "squeue", line: index + 1, problem };
        job(line).map_err(unreadable).transpose()
    });
    jobs.collect()
}

/// The fields of a node's line that matter. Text that people wrote (Reason, Comment) comes last and may hold anything,
/// so a key's first appearance counts.
#[derive(Default)]
struct Fields<'a> {
    name: Option<&'a str>,
    state: Option<&'a str>,
    partitions: Option<&'a str>,
    features: Option<&'a str>,
    cpus_effective: Option<&'a str>,
    cpus: Option<&'a str>,
    cpus_allocated: Option<&'a str>,
    memory: Option<&'a str>,
    memory_allocated: Option<&'a str>,
}

impl<'a> Fields<'a> {
    fn of(line: &'a str) -> Self {
        let mut fields = Self::default();
        for (key, value) in line.split(' ').filter_map(|word| word.split_once('=')) {
            let field = match key {
                "NodeName" => &mut fields.name,
                "State" => &mut fields.state,
                "Partitions" => &mut fields.partitions,
                "ActiveFeatures" => &mut fields.features,
                "CPUEfctv" => &mut fields.cpus_effective,
                "CPUTot" => &mut fields.cpus,
                "CPUAlloc" => &mut fields.cpus_allocated,
                "RealMemory" => &mut fields.memory,
                "AllocMem" => &mut fields.memory_allocated,
                _ => continue,
            };
            field.get_or_insert(value);
        }
        fields
    }
}

fn node(line: &str) -> Result<NodeView, String> {
    let fields = Fields::of(line);
    Ok(NodeView {
        name: NodeName::new(need("NodeName", fields.name)?).map_err(|error| error.to_string())?,
        state: NodeState::parse(need("State", fields.state)?),
        partitions: list(fields.partitions),
        features: list(fields.features),
        // CPUEfctv leaves out cores that Slurm keeps for the system; releases before 22.05 lack it.
        cpus: number("CPUTot", fields.cpus_effective.or(fields.cpus))?,
        alloc_cpus: number("CPUAlloc", fields.cpus_allocated)?,
        real_memory_mb: number("RealMemory", fields.memory)?,
        alloc_memory_mb: number("AllocMem", fields.memory_allocated)?,
        planned_start_unix_s: None,
    })
}

fn need<'a>(key: &str, field: Option<&'a str>) -> Result<&'a str, String> {
    field.ok_or_else(|| format!("{key}= is missing"))
}

fn number<T: FromStr>(key: &str, field: Option<&str>) -> Result<T, String> {
    let text = need(key, field)?;
    text.parse().map_err(|_| format!("{key}={text} is no number that fits"))
}

fn list(field: Option<&str>) -> Vec<String> {
    let items = field.into_iter().flat_map(|text| text.split(','));
    items.filter(|item| !item.is_empty() && *item != "(null)").map(str::to_owned).collect()
}

fn job(line: &str) -> Result<Option<JobView>, String> {
    let columns: Vec<&str> = line.split('|').map(str::trim).collect();
    let [id, state, nodes, end, start, planned_nodes] = columns[..] else {
        return Err(format!("{} columns instead of 6", columns.len()));
    };
    let id = id.parse().map_err(|_| format!("job number {id:?} is no number"))?;
    let pending = state == "PENDING";
    let hosts = if pending { planned_nodes } else { nodes };
    let start_unix_s = if pending { time(start)? } else { None };
    if hosts.is_empty() || hosts == "(null)" || (pending && start_unix_s.is_none()) {
        return Ok(None);
    }
    let nodes = hostlist::expand(hosts).map_err(|error| error.to_string())?;
    Ok(Some(JobView { id: JobId(id), nodes, end_unix_s: time(end)?, start_unix_s }))
}

/// Unix seconds, or none where Slurm has no time to name.
fn time(text: &str) -> Result<Option<i64>, String> {
    match text {
        "" | "N/A" | "NONE" | "Unknown" | "None" | "INVALID" => Ok(None),
        digits => digits.parse().map(Some).map_err(|_| format!("time {digits:?} is no number")),
    }
}

#[cfg(test)]
mod tests {
    use gleaner_harvester_core::picture::{Base, Flags};
    use proptest::prelude::*;

    use super::*;

    const NODES: &str = include_str!("captured/nodes-22.05.txt");
    const JOBS: &str = include_str!("captured/jobs-22.05.txt");

    fn find<'a>(nodes: &'a [NodeView], name: &str) -> &'a NodeView {
        nodes.iter().find(|node| node.name.as_str() == name).unwrap()
    }

    fn names(nodes: &[NodeName]) -> String {
        hostlist::compress(nodes)
    }

    #[test]
    fn reads_the_nodes_of_slurm_22_05() {
        let nodes = nodes(NODES).unwrap();
        assert_eq!(nodes.len(), 5);
        let n1 = find(&nodes, "n1");
        assert_eq!((n1.cpus, n1.alloc_cpus), (2, 1));
        assert_eq!((n1.real_memory_mb, n1.alloc_memory_mb), (4000, 500));
        assert_eq!((n1.state.base, n1.state.flags), (Base::Mixed, Flags::NONE));
        assert_eq!(n1.partitions, ["batch", "gleaner"]);
        assert!(n1.features.is_empty());
        assert_eq!(find(&nodes, "n2").state.base, Base::Allocated);
        assert_eq!(find(&nodes, "n4").state.flags, Flags::DRAIN);
    }

    #[test]
    fn what_people_wrote_as_a_reason_decides_nothing() {
        let nodes = nodes(NODES).unwrap();
        let down = find(&nodes, "down1");
        assert_eq!(down.state.base, Base::Down);
        assert_eq!(down.features, ["a", "b", "gleaner"]);
        let drained = find(&nodes, "n4");
        assert!(drained.state.flags.contains(Flags::DRAIN));
        assert_eq!(drained.cpus, 2);
    }

    #[test]
    fn reads_running_and_planned_jobs_and_leaves_out_those_without_nodes() {
        let jobs = jobs(JOBS).unwrap();
        let seen: Vec<_> = jobs
            .iter()
            .map(|job| {
                (job.id.0, names(&job.nodes), job.end_unix_s.is_some(), job.start_unix_s.is_some())
            })
            .collect();
        let expected = [
            (4, "n[1-2]".to_owned(), true, true),
            (5, "n2".to_owned(), true, true),
            (1, "n1".to_owned(), true, false),
            (2, "n2".to_owned(), true, false),
            (3, "n3".to_owned(), false, false),
        ];
        assert_eq!(seen, expected);
    }

    #[test]
    fn a_line_that_lacks_what_a_decision_needs_is_named() {
        let without_state = NODES.replacen(" State=MIXED", "", 1);
        let error = nodes(&without_state).unwrap_err().to_string();
        assert!(error.contains("line 2") && error.contains("State="), "{error}");
        let error = nodes("NodeName=n1 State=IDLE CPUTot=lots").unwrap_err().to_string();
        assert!(error.contains("CPUTot="), "{error}");
        assert!(jobs("1|RUNNING|n1").unwrap_err().to_string().contains("3 columns"));
        assert!(jobs("x|RUNNING|n1|1|1|").is_err());
    }

    #[test]
    fn an_answer_that_holds_no_nodes_is_an_empty_cluster() {
        assert!(nodes("No nodes in the system\n").unwrap().is_empty());
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused(text in "\\PC{0,200}") {
            let _ = nodes(&text);
            let _ = nodes(&format!("NodeName={text}"));
            let _ = jobs(&text);
        }

        #[test]
        fn damaged_answers_are_read_or_refused(at in 0..NODES.len(), with in "[ =|\\[\\]0-9A-Za-z+*\n]{0,8}") {
            let damaged = |text: &str| {
                let at = (0..=at.min(text.len())).rev().find(|&at| text.is_char_boundary(at)).unwrap_or(0);
                format!("{}{with}{}", &text[..at], &text[at..])
            };
            let _ = nodes(&damaged(NODES));
            let _ = jobs(&damaged(JOBS));
        }

        #[test]
        fn a_node_is_never_more_allocated_in_the_view_than_in_the_text(alloc in 0..1000u32, cpus in 0..1000u32) {
            let line = format!("NodeName=a1 CPUAlloc={alloc} CPUEfctv={cpus} CPUTot=1001 RealMemory=1 AllocMem=0 State=IDLE Partitions=p");
            let node = node(&line).unwrap();
            prop_assert_eq!((node.alloc_cpus, node.cpus), (alloc, cpus));
        }
    }
}
