// Azure OpenAI: the account and its deployments.
param location string
param prefix string
param models array
param private bool
param workspaceId string
param workerPrincipalId string
param operators array
param operatorsAre string

// Cognitive Services OpenAI User: calls the models; sees no key and changes nothing.
var openAiUser = '5e0bd9bd-7b93-4f28-af87-19fc36ad61bd'

resource account 'Microsoft.CognitiveServices/accounts@2025-06-01' = {
  name: '${prefix}-models'
  location: location
  kind: 'OpenAI'
  sku: {
    name: 'S0'
  }
  identity: {
    type: 'SystemAssigned'
  }
  properties: {
    // Tokens of Entra ID are taken only where the account has a host name of its own.
    customSubDomainName: '${prefix}-models'
    disableLocalAuth: true
    publicNetworkAccess: private ? 'Disabled' : 'Enabled'
    networkAcls: {
      defaultAction: private ? 'Deny' : 'Allow'
    }
  }
}

// One after the other: the account takes one change at a time.
@batchSize(1)
resource deployment 'Microsoft.CognitiveServices/accounts/deployments@2025-06-01' = [
  for model in models: {
    parent: account
    name: model.name
    sku: {
      name: model.sku
      capacity: model.capacity
    }
    properties: {
      model: {
        format: 'OpenAI'
        name: model.model
        version: model.version
      }
      // Another version in the middle of a batch would give answers of two kinds.
      versionUpgradeOption: 'OnceCurrentVersionExpired'
    }
  }
]

resource workerCalls 'Microsoft.Authorization/roleAssignments@2022-04-01' = {
  scope: account
  name: guid(account.id, workerPrincipalId, openAiUser)
  properties: {
    roleDefinitionId: subscriptionResourceId('Microsoft.Authorization/roleDefinitions', openAiUser)
    principalId: workerPrincipalId
    principalType: 'ServicePrincipal'
  }
}

resource operatorsCall 'Microsoft.Authorization/roleAssignments@2022-04-01' = [
  for operator in operators: {
    scope: account
    name: guid(account.id, operator, openAiUser)
    properties: {
      roleDefinitionId: subscriptionResourceId('Microsoft.Authorization/roleDefinitions', openAiUser)
      principalId: operator
      principalType: operatorsAre
    }
  }
]

resource audit 'Microsoft.Insights/diagnosticSettings@2021-05-01-preview' = {
  scope: account
  name: 'audit'
  properties: {
    workspaceId: workspaceId
    logs: [
      {
        category: 'Audit'
        enabled: true
      }
    ]
    metrics: [
      {
        category: 'AllMetrics'
        enabled: true
      }
    ]
  }
}

output accountId string = account.id
output accountName string = account.name
output endpoint string = 'https://${prefix}-models.openai.azure.com'
