//! One question, one answer.

use tandem_client::{Client, Effort, Error};

/// Asks one question.
pub async fn ask(url: &str, question: &str) -> Result<String, Error> {
    let client = Client::new(url)?;
    let reply = client
        .chat()
        .system("Be brief.")
        .user(question)
        .effort(Effort::Low)
        .temperature(0.0)
        .max_tokens(200)
        .send()
        .await?;
    Ok(reply.content)
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Error> {
    println!("{}", ask("http://127.0.0.1:50051", "How many letters are in the word tandem?").await?);
    Ok(())
}
