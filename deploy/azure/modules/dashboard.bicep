// The server beside the workers on Container Apps: the dashboard, the Files and Batches API, metrics, and
// what the workers are scaled by.
//
// Whoever asks brings one of two tokens: people one that may do everything, the platform's scaler one
// that may only read. They are the only secrets here, and the template keeps them where Container Apps
// does: nobody else has them but you.
param location string
param prefix string
param image string
param registryServer string
param settings array
param workerIdentityId string
param environmentId string

@secure()
@description('At least 16 characters.')
param operatorToken string

@secure()
@description('At least 16 characters.')
param scalerToken string

@description('Reached from inside the network alone.')
param private bool

var name = take(prefix, 22)
var port = 8780

resource dashboard 'Microsoft.App/containerApps@2026-01-01' = {
  name: '${name}-dashboard'
  location: location
  identity: {
    type: 'UserAssigned'
    userAssignedIdentities: {
      '${workerIdentityId}': {}
    }
  }
  properties: {
    environmentId: environmentId
    workloadProfileName: 'Consumption'
    configuration: {
      activeRevisionsMode: 'Single'
      registries: [
        {
          server: registryServer
          identity: workerIdentityId
        }
      ]
      identitySettings: [
        {
          identity: workerIdentityId
          lifecycle: 'All'
        }
      ]
      secrets: [
        {
          name: 'operator-token'
          value: operatorToken
        }
        {
          name: 'scaler-token'
          value: scalerToken
        }
      ]
      // TLS ends at the ingress.
      ingress: {
        external: !private
        targetPort: port
        transport: 'http'
        allowInsecure: false
      }
    }
    template: {
      containers: [
        {
          name: 'dashboard'
          image: image
          args: [
            'serve'
          ]
          env: concat(settings, [
            {
              name: 'PROMPTMILL__SERVE__LISTEN'
              value: '0.0.0.0:${port}'
            }
            {
              name: 'PROMPTMILL__SERVE__TOKENS__0__NAME'
              value: 'operators'
            }
            {
              name: 'PROMPTMILL__SERVE__TOKENS__0__ROLE'
              value: 'operate'
            }
            {
              name: 'PROMPTMILL__SERVE__TOKENS__0__TOKEN_ENV'
              value: 'OPERATOR_TOKEN'
            }
            {
              name: 'PROMPTMILL__SERVE__TOKENS__1__NAME'
              value: 'scaler'
            }
            {
              name: 'PROMPTMILL__SERVE__TOKENS__1__ROLE'
              value: 'read'
            }
            {
              name: 'PROMPTMILL__SERVE__TOKENS__1__TOKEN_ENV'
              value: 'SCALER_TOKEN'
            }
            {
              name: 'OPERATOR_TOKEN'
              secretRef: 'operator-token'
            }
            {
              name: 'SCALER_TOKEN'
              secretRef: 'scaler-token'
            }
          ])
          resources: {
            cpu: json('0.25')
            memory: '0.5Gi'
          }
          probes: [
            {
              type: 'Liveness'
              httpGet: {
                path: '/livez'
                port: port
              }
              periodSeconds: 10
            }
            {
              type: 'Readiness'
              httpGet: {
                path: '/readyz'
                port: port
              }
              // Each look asks the queue and the store.
              periodSeconds: 30
              timeoutSeconds: 12
            }
          ]
        }
      ]
      terminationGracePeriodSeconds: 60
      // One is enough; it keeps nothing that another one would need.
      scale: {
        minReplicas: 1
        maxReplicas: 1
      }
    }
  }
}

output url string = 'https://${dashboard.properties.configuration.ingress.fqdn}'
