//! Two processors share the partitions, and take over from each other.

use sluice_tests::run::on_prepared;
use sluice_tests::stack::Options;
use sluice_tests::traffic::Traffic;

#[test]
fn processors_that_come_and_go_decide_everything_once() {
    let options = Options {
        processors: 2,
        ..Options::default()
    };
    on_prepared(options, async |stack| {
        stack.start_gateway()?;
        stack.start_processor(0)?;
        stack.ready().await?;
        let url = stack.gateway_url();
        let mut traffic = Traffic::start(stack, &url, &url).await?;
        traffic.flows(500).await?;
        // A second one joins in mid-run, and both decide.
        stack.start_processor(1)?;
        stack.ready().await?;
        traffic.flows(1_000).await?;
        // The first one dies, and the second one takes all over.
        stack.processor(0)?.kill_9()?;
        traffic.flows(1_000).await?;
        // It comes back, and the second one leaves in order.
        stack.start_processor(0)?;
        stack.ready().await?;
        traffic.flows(500).await?;
        stack.processor(1)?.terminate().await?;
        traffic.flows(500).await?;
        traffic.finish(stack).await?;
        Ok(())
    });
}
