//! The service `Admin`. Who is an admin, the core decides, and it keeps the audit trail of each call, refused ones too.

use gleaner_harvester_core::{Event, effect::Reply, event::AdminCommand};
use gleaner_proto::{
    ids::NodeName,
    v1::{
        DrainReply, DrainRequest, ResumeReply, ResumeRequest, SwitchOffRequest, SwitchOnRequest,
        SwitchReply, admin_server::Admin,
    },
};
use tonic::{Request, Response, Status};

use super::{Service, auth::Known, convert};

impl Service {
    async fn command(&self, known: &Known, command: AdminCommand) -> Result<Reply, Status> {
        let who = known.identity();
        let answered = self.driver.call(|call| Event::Admin { call, who, command }).await?;
        answered.map_err(convert::refused)
    }
}

fn names(reply: Reply) -> Result<Vec<String>, Status> {
    let Reply::Nodes(nodes) = reply else { return Err(super::crossed()) };
    Ok(nodes.iter().map(NodeName::to_string).collect())
}

fn switched(reply: Reply) -> Result<SwitchReply, Status> {
    let Reply::Switched { off, vacating } = reply else { return Err(super::crossed()) };
    Ok(SwitchReply { switched_off: off, nodes_vacating: vacating })
}

#[tonic::async_trait]
impl Admin for Service {
    async fn drain(&self, request: Request<DrainRequest>) -> Result<Response<DrainReply>, Status> {
        let known = self.auth.check("Admin/Drain", &request).await?;
        let DrainRequest { nodelist, reason } = request.into_inner();
        let reply = self.command(&known, AdminCommand::Drain { nodelist, reason }).await?;
        self.auth.answer(&known, DrainReply { nodes: names(reply)? }).await
    }

    async fn resume(
        &self,
        request: Request<ResumeRequest>,
    ) -> Result<Response<ResumeReply>, Status> {
        let known = self.auth.check("Admin/Resume", &request).await?;
        let ResumeRequest { nodelist } = request.into_inner();
        let reply = self.command(&known, AdminCommand::Resume { nodelist }).await?;
        self.auth.answer(&known, ResumeReply { nodes: names(reply)? }).await
    }

    async fn switch_off(
        &self,
        request: Request<SwitchOffRequest>,
    ) -> Result<Response<SwitchReply>, Status> {
        let known = self.auth.check("Admin/SwitchOff", &request).await?;
        let SwitchOffRequest { reason } = request.into_inner();
        let reply = self.command(&known, AdminCommand::SwitchOff { reason }).await?;
        self.auth.answer(&known, switched(reply)?).await
    }

    async fn switch_on(
        &self,
        request: Request<SwitchOnRequest>,
    ) -> Result<Response<SwitchReply>, Status> {
        let known = self.auth.check("Admin/SwitchOn", &request).await?;
        let reply = self.command(&known, AdminCommand::SwitchOn).await?;
        self.auth.answer(&known, switched(reply)?).await
    }
}
