//! Munge and the harvester.

use gleaner::{Client, Options, harvester::types};
use gleaner_config::{Auth, Config};
use gleaner_identity::Munge;

use super::Finding;

const MUNGE: &str = "munge";

const POLICY: &str = "policy";

/// A credential that is made and read back says this user's uid.
pub(super) fn munge(config: &Config) -> Finding {
    if config.cluster.auth == Auth::SingleUser {
        return Finding::absent(MUNGE, "not used: cluster.auth = \"single-user\"");
    }
    let made = Munge::load(config.cluster.munge_socket.clone()).and_then(|munge| {
        let credential = munge.encode(b"gleaner doctor", None)?;
        munge.decode(&credential)
    });
    let remedy = "see that munged runs here (`systemctl status munge`), that libmunge2 is installed, and that \
        cluster.munge_socket is right";
    match made {
        Ok(decoded) if decoded.uid == nix::unistd::geteuid().as_raw() => Finding::good(
            MUNGE,
            format!("a credential of uid {} was made and read back", decoded.uid),
        ),
        Ok(decoded) => {
            Finding::bad(MUNGE, format!("munge takes this user for uid {}", decoded.uid), remedy)
        }
        Err(error) => Finding::bad(MUNGE, error.to_string(), remedy),
    }
}

/// The harvester answers, sees Slurm and stores its records.
pub(super) fn harvester(config: &Config) -> Vec<Finding> {
    const HARVESTER: &str = "harvester";
    let address = &config.harvester.address;
    let remedy = format!(
        "see that gleaner-harvester runs (`systemctl status gleaner-harvester`) and that harvester.address = {address:?} is right"
    );
    let client = match Client::connect(Options::from(config)) {
        Ok(client) => client,
        Err(error) => return vec![Finding::bad(HARVESTER, error.to_string(), remedy)],
    };
    let status = match client.harvester().status(types::GetStatusRequest {}) {
        Ok(status) => status,
        Err(error) => return vec![Finding::bad(HARVESTER, error.to_string(), remedy)],
    };
    let about = format!(
        "{address}: version {}, term {}, {} executors",
        status.version, status.term, status.executors
    );
    vec![
        Finding::good(HARVESTER, about),
        mode(&status),
        policy(&status),
        picture(&status),
        records(&status),
    ]
}

fn mode(status: &types::Status) -> Finding {
    const MODE: &str = "harvesting";
    let counts =
        format!("{} nodes opted in, {} harvested", status.nodes_opted_in, status.nodes_granted);
    if status.switched_off {
        Finding::warning(MODE, "switched off", "`gleaner on` ends the kill switch")
    } else if status.mode != "enforce" {
        Finding::warning(
            MODE,
            format!("mode {:?} takes nothing; {counts}", status.mode),
            "set policy.mode = \"enforce\" when the report looks right",
        )
    } else if status.nodes_opted_in == 0 {
        let remedy = "see that policy.partitions, nodes and features name what Slurm has (`sinfo`)";
        Finding::bad(MODE, "no node of Slurm's is opted in", remedy)
    } else if status.executors == 0 {
        let remedy =
            "start gleaner-executor on the nodes (`systemctl enable --now gleaner-executor`)";
        Finding::bad(MODE, format!("no executor has registered; {counts}"), remedy)
    } else {
        Finding::good(MODE, counts)
    }
}

/// Names that the policy uses and Slurm does not know take nothing, silently: say so.
fn policy(status: &types::Status) -> Finding {
    let remedy = "name in policy.partitions, nodes and features what Slurm has (`sinfo`)";
    match status.warnings.as_slice() {
        [] => Finding::good(POLICY, "Slurm knows all that it names"),
        warnings => Finding::bad(POLICY, warnings.join("; "), remedy),
    }
}

fn picture(status: &types::Status) -> Finding {
    const PICTURE: &str = "slurm, as the harvester sees it";
    let remedy = "see that slurmctld answers there (`scontrol ping`), and slurm.commands and slurm.slurm_conf";
    if !status.slurm_error.is_empty() {
        return Finding::bad(PICTURE, status.slurm_error.clone(), remedy);
    }
    match status.picture_age_ms {
        age if age < 0 => Finding::bad(PICTURE, "not seen yet", remedy),
        age => {
            let took = status.picture_took_us as f64 / 1e3;
            Finding::good(
                PICTURE,
                format!("{} nodes, seen {age} ms ago, read in {took:.1} ms", status.nodes_total),
            )
        }
    }
}

fn records(status: &types::Status) -> Finding {
    const RECORDS: &str = "records";
    match status.store_error.as_str() {
        "" => Finding::good(RECORDS, "being stored"),
        error => {
            let remedy = "free space in harvester.state_dir or make it writable: until then no lease is issued";
            Finding::bad(RECORDS, error, remedy)
        }
    }
}
