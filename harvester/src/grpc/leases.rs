//! The service `Leases`: who calls, then the core, then the signed answer.

use gleaner_harvester_core::{Event, effect::Reply};
use gleaner_proto::v1::{
    AcquireReply, AcquireRequest, ReleaseReply, ReleaseRequest, leases_server::Leases,
};
use tonic::{Request, Response, Status};

use super::{Service, convert};

#[tonic::async_trait]
impl Leases for Service {
    async fn acquire(
        &self,
        request: Request<AcquireRequest>,
    ) -> Result<Response<AcquireReply>, Status> {
        let known = self.auth.check("Leases/Acquire", &request).await?;
        let acquire = convert::acquire(request.into_inner(), known.identity())?;
        let answered = self.driver.call(|call| Event::Acquire(acquire(call))).await?;
        let Reply::Leases(leases) = answered.map_err(convert::refused)? else {
            return Err(super::crossed());
        };
        let leases = leases.into_iter().map(|leased| convert::leased(leased, &self.key));
        self.auth.answer(&known, AcquireReply { leases: leases.collect() }).await
    }

    async fn release(
        &self,
        request: Request<ReleaseRequest>,
    ) -> Result<Response<ReleaseReply>, Status> {
        let known = self.auth.check("Leases/Release", &request).await?;
        let leases = convert::release(request.into_inner())?;
        let who = known.identity();
        let answered = self.driver.call(|call| Event::Release { call, who, leases }).await?;
        let Reply::Released(released) = answered.map_err(convert::refused)? else {
            return Err(super::crossed());
        };
        let released = released.into_iter().map(|lease| lease.0).collect();
        self.auth.answer(&known, ReleaseReply { released }).await
    }
}
