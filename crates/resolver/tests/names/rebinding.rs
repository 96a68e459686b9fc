//! Names that lead to where only a rule of its own leads.

use hickory_proto::op::ResponseCode;
use hickory_proto::rr::RecordType;

use crate::sandbox::{Sandbox, addresses, servers};
use crate::site::{Site, a, cname};

#[tokio::test]
async fn private_addresses_are_taken_out_of_answers() {
    let site = Site::with(vec![
        cname("a.example.", 300, "b.example."),
        a("b.example.", 300, "169.254.169.254"),
        a("b.example.", 300, "127.0.0.1"),
        a("b.example.", 300, "44.0.0.1"),
    ])
    .await;
    for allow in [&["a.example", "8.0.0.0/5"][..], &[]] {
        let sandbox = Sandbox::new(allow, &["x.example"], servers(&[&site])).await;
        for _ in 0..2 {
            let answer = sandbox.ask("a.example.", RecordType::A).await;
            assert_eq!(answer.response_code, ResponseCode::NoError);
            assert_eq!(addresses(&answer), ["b.example."]);
        }
        assert_eq!(sandbox.gate.take(), []);
        assert_eq!(sandbox.counts().rebinding, 2);
    }
}

#[tokio::test]
async fn of_mixed_answers_the_rest_is_given() {
    let site = Site::with(vec![
        a("a.example.", 300, "10.0.0.1"),
        a("a.example.", 300, "8.0.0.1"),
        a("a.example.", 300, "192.168.0.1"),
    ])
    .await;
    let sandbox = Sandbox::new(&["a.example"], &[], servers(&[&site])).await;
    let answer = sandbox.ask("a.example.", RecordType::A).await;
    assert_eq!(addresses(&answer), ["8.0.0.1"]);
    assert_eq!(sandbox.gate.opened(), [(0, "8.0.0.1".parse().unwrap())]);
    assert_eq!(sandbox.counts().rebinding, 1);
}

#[tokio::test]
async fn a_rule_of_its_own_opens_a_private_address_at_its_port_and_the_name_no_more_of_it() {
    let site = Site::with(vec![a("db.example.", 300, "10.1.2.3")]).await;
    let allow = ["db.example", "10.1.0.0/16:5432"];
    let sandbox = Sandbox::new(&allow, &[], servers(&[&site])).await;
    assert_eq!(
        sandbox.resolve("db.example.").await,
        (ResponseCode::NoError, vec!["10.1.2.3".into()])
    );
    assert_eq!(sandbox.gate.take(), []);
    assert_eq!(sandbox.counts().rebinding, 0);
}
