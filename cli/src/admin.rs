//! What admins may do: drain, resume, off, on. The harvester decides who is one.

use gleaner::harvester::types;
use serde_json::json;

use crate::{
    arguments::{Common, Drain, Off, Resume},
    connect::client,
    exit::Failure,
    output,
};

/// Vacates nodes and keeps off them.
pub(crate) fn drain(common: &Common, drain: &Drain) -> Result<(), Failure> {
    let request =
        types::DrainRequest { nodelist: drain.nodelist.clone(), reason: drain.reason.clone() };
    let (client, _) = client(common)?;
    let nodes = client.harvester().drain(request)?.nodes;
    told_nodes(common.json, "drain", "drained", &nodes);
    Ok(())
}

/// Lets drained nodes be harvested again.
pub(crate) fn resume(common: &Common, resume: &Resume) -> Result<(), Failure> {
    let request = types::ResumeRequest { nodelist: resume.nodelist.clone() };
    let (client, _) = client(common)?;
    let nodes = client.harvester().resume(request)?.nodes;
    told_nodes(common.json, "resume", "resumed", &nodes);
    Ok(())
}

fn told_nodes(as_json: bool, verb: &str, done: &str, nodes: &[String]) {
    output::print(as_json, verb, &json!({ "nodes": nodes }), |_| match nodes {
        [] => format!("no node had to be {done}"),
        nodes => format!("{done}: {}", nodes.join(",")),
    });
}

/// The kill switch.
pub(crate) fn off(common: &Common, off: &Off) -> Result<(), Failure> {
    let (client, _) = client(common)?;
    let reply =
        client.harvester().switch_off(types::SwitchOffRequest { reason: off.reason.clone() })?;
    told_switch(common.json, "off", &reply);
    Ok(())
}

/// Ends the kill switch.
pub(crate) fn on(common: &Common) -> Result<(), Failure> {
    let (client, _) = client(common)?;
    let reply = client.harvester().switch_on(types::SwitchOnRequest {})?;
    told_switch(common.json, "on", &reply);
    Ok(())
}

fn told_switch(as_json: bool, verb: &str, reply: &types::SwitchReply) {
    let value =
        json!({ "switched_off": reply.switched_off, "nodes_vacating": reply.nodes_vacating });
    output::print(as_json, verb, &value, |_| match reply.switched_off {
        true => {
            format!("switched off: leaving {} nodes; `gleaner on` ends it", reply.nodes_vacating)
        }
        false => "switched on".into(),
    });
}
